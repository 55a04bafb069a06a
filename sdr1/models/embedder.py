"""Any open_clip model, HPS v2 among them, as an embedder of texts and of uint8 image batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize
from torchvision.transforms import v2

from sdr1.base.errors import UserError, reason
from sdr1.base.plain_data import read_json
from sdr1.base.section import SANDBOX
from sdr1.models import hps, weight_files

_KEPT_TEXTS = 4096
_ADAPTED = ("logit_scale", "logit_bias", "position_ids", "positional_embedding", "pos_embed")
"""Ends of names of tensors that open_clip adds, drops or resizes while it loads."""
_SCHEMES = ("local-dir:", "hf-hub:")


class Source(NamedTuple):
    """What open_clip is asked for."""

    name: str
    """Architecture, or `local-dir:` or `hf-hub:` with their place."""
    weights: str | None
    """Tag or file for an architecture; None where the place holds them."""


def find(model: str, pretrained: Path | None, field: str = "reward") -> Source:
    """What `model` and `pretrained` stand for, checked as far as files here can tell, without loading weights.

    Raises:
        UserError: a field of the config section `field` is wrong.
    """
    import open_clip

    if model == SANDBOX:
        from sdr1.sandbox import CLIP

        model = f"local-dir:{CLIP}"
    if model.startswith(_SCHEMES):
        if pretrained is not None:
            raise UserError(
                f"{field}.pretrained: {str(pretrained)!r}: {model} brings its own weights; leave it out"
            )
        if model.startswith("local-dir:"):
            _check_folder(Path(model.removeprefix("local-dir:")), model, field)
        else:
            _check_hub(model, field)
        return Source(model, None)
    name = hps.ARCHITECTURE if model in hps.MODELS else model
    if name not in open_clip.list_models():
        raise UserError(
            f"{field}.model: {model!r}: no such model; give `sandbox`, hps-v2.1, an open_clip name such as ViT-L-14, "
            "local-dir:FOLDER or hf-hub:ID"
        )
    if pretrained is None:
        if model not in hps.MODELS:
            raise UserError(
                f"{field}.pretrained: none given: {model!r} would start with random weights; give a weights file, or "
                f"one of {', '.join(open_clip.list_pretrained_tags_by_model(model)[:4]) or 'no known tag'}"
            )
        pretrained = hps.fetch(model, field)
    elif str(pretrained) in open_clip.list_pretrained_tags_by_model(model):
        return Source(name, str(pretrained))
    found = weight_files.shapes(pretrained, f"{field}.pretrained")
    # Weights in another library's layout are open_clip's to convert, or to refuse.
    if model in hps.MODELS or any(key.startswith("visual.") for key in found):
        where = f"{field}.pretrained: {str(pretrained)!r}"
        weight_files.require_fit(found, _expected(name), where, model)
    return Source(name, str(pretrained))


_CONFIG = "open_clip_config.json"


def _check_folder(folder: Path, model: str, field: str) -> None:
    from open_clip.factory import _find_checkpoint_in_dir

    where = f"{field}.model: {model!r}"
    _, expected = read_folder(folder, model, field)
    # The very file that open_clip takes where there are several.
    found = Path(_find_checkpoint_in_dir(folder) or "")
    if found.suffix != ".safetensors":
        raise UserError(
            f"{where}: {found.name or 'no .safetensors file there'}; save the weights with safetensors, not as a pickle"
        )
    _require_fit(weight_files.shapes(found, f"{field}.model"), expected, f"{where}: {found.name}", _CONFIG)


def read_folder(folder: Path, model: str, field: str) -> tuple[dict[str, Any], weight_files.Shapes]:
    """The model that the config of a folder of open_clip describes: open_clip's options, and the weights' shapes.

    Raises:
        UserError: it has none, or one of no model; `model` is what the user wrote in `field`.
    """
    where = f"{field}.model: {model!r}"
    if not (folder / _CONFIG).is_file():
        raise UserError(f"{where}: no {_CONFIG} there; give a folder that open_clip saved")
    held = read_json(folder / _CONFIG, f"{field}.model")
    if not isinstance(held, dict) or not isinstance(held.get("model_cfg"), dict):
        raise UserError(f"{where}: {_CONFIG} holds no model_cfg; give a folder that open_clip saved")
    return dict(held["model_cfg"]), _described(held, f"{where}: {_CONFIG}")


def _described(held: dict[str, Any], where: str) -> weight_files.Shapes:
    """The shapes of the model that an open_clip config describes, once its preprocessing has been tried."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    try:
        expected = _shapes(copy.deepcopy(held["model_cfg"]))
        settings = merge_preprocess_dict(PreprocessCfg(), held.get("preprocess_cfg", {}))
        _batch_preprocess(settings)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    # Whatever a library makes of a text that anybody may have written.
    except Exception as error:
        raise UserError(
            f"{where}: describes no model that open_clip builds: {type(error).__name__}: {reason(error)}; fetch it again"
        ) from error
    return expected


def _require_fit(found: weight_files.Shapes, expected: weight_files.Shapes, where: str, what: str) -> None:
    """Refuse weights that do not fit; those in another library's or an older layout are open_clip's to convert."""
    if any(name.startswith("visual.") for name in found) and (
        any(name.startswith("text.") for name in found) == any(name.startswith("text.") for name in expected)
    ):
        kept, wanted = (
            {name: shape for name, shape in shapes.items() if not name.endswith(_ADAPTED)}
            for shapes in (found, expected)
        )
        weight_files.require_fit(kept, wanted, where, what)


def _check_hub(model: str, field: str) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(model.removeprefix("hf-hub:"), _CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{field}.model: {model!r}: {reason(error)}; check the name, or download it and give local-dir:FOLDER"
        ) from error


def _expected(name: str) -> weight_files.Shapes:
    import open_clip

    return _shapes(open_clip.get_model_config(name))


def _shapes(options: dict[str, Any]) -> weight_files.Shapes:
    import open_clip

    kind = open_clip.CustomTextCLIP if options.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        model = kind(**options)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


class Embedder:
    """L2-normalised embeddings of an open_clip model; the latest texts' are kept.

    `batch` images or texts go through one forward pass; `field` is the config section that error lines name.

    Raises:
        UserError: `model` or `pretrained` does not load.
    """

    def __init__(
        self, model: str, pretrained: Path | None, device: str, *, batch: int = 64, field: str = "reward"
    ) -> None:
        import open_clip

        source = find(model, pretrained, field)
        try:
            self._model = open_clip.create_model(source.name, pretrained=source.weights, device=device)
            self._tokenizer = open_clip.get_tokenizer(source.name)
            settings = open_clip.get_model_preprocess_cfg(self._model)
            self._preprocess = (hps.preprocess if model in hps.MODELS else _batch_preprocess)(settings)
        # One guarded place: what a library makes of files that anybody may have written.
        except Exception as error:
            raise UserError(
                f"{field}.model: {model!r}: {reason(error)}; give `sandbox`, an open_clip name or local-dir:FOLDER"
            ) from error
        weight_files.require_finite(self._model.state_dict(), f"{field}.model: {model!r}")
        self._model.eval().requires_grad_(False)
        self._device, self._batch = torch.device(device), batch
        self._texts: dict[str, torch.Tensor] = {}
        self._where = f"{field}.model: {model!r}"
        self._latest: tuple[np.ndarray, torch.Tensor] | None = None

    @property
    def dimension(self) -> int:
        """Size of an embedding."""
        return self.texts([""]).shape[1]

    @torch.no_grad()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """Embeddings, shape (B, D), float32."""
        new = list(dict.fromkeys(text for text in texts if text not in self._texts))
        for start in range(0, len(new), self._batch):
            some = new[start : start + self._batch]
            embedded = self._model.encode_text(self._tokenizer(some).to(self._device)).float()
            self._texts.update(zip(some, self._unit(embedded), strict=True))
        found = torch.stack([self._texts[text] for text in texts])
        for oldest in list(self._texts)[: max(0, len(self._texts) - _KEPT_TEXTS)]:
            del self._texts[oldest]
        return found

    @torch.no_grad()
    def images(self, images_NHWC: np.ndarray) -> torch.Tensor:
        """Embeddings of RGB uint8 images (N, H, W, 3), shape (N, D), float32; uint8 until the device.

        Terms that share this embedder ask for the same array one after another; it is embedded once.
        """
        if self._latest is None or self._latest[0] is not images_NHWC:
            parts = [
                self._embed(images_NHWC[n : n + self._batch]) for n in range(0, len(images_NHWC), self._batch)
            ]
            self._latest = images_NHWC, torch.cat(parts)
        return self._latest[1]

    def _embed(self, images_NHWC: np.ndarray) -> torch.Tensor:
        batch = torch.tensor(images_NHWC, device=self._device).permute(0, 3, 1, 2)
        return self._unit(self._model.encode_image(self._preprocess(batch)).float())

    def _unit(self, embedded: torch.Tensor) -> torch.Tensor:
        # Every comparison with NaN is False: judges would find all images safe.
        if not embedded.isfinite().all():
            raise UserError(
                f"{self._where}: its embeddings are not finite: damaged weights; fetch them again"
            )
        return normalize(embedded, dim=-1)


class Embedders:
    """The embedders of one worker, each loaded once; terms without a model of their own use the main one."""

    def __init__(self, model: str, pretrained: Path | None, device: str, batch: int) -> None:
        self._main, self._device, self._batch = (model, pretrained), device, batch
        self._loaded: dict[tuple[str, Path | None], Embedder] = {}

    def get(self, model: str | None, pretrained: Path | None, field: str) -> Embedder:
        """Raises UserError, naming the section `field`, when it does not load."""
        key = self._main if model is None else (model, pretrained)
        if key not in self._loaded:
            self._loaded[key] = Embedder(*key, self._device, batch=self._batch, field=field)
        return self._loaded[key]


def _batch_preprocess(settings: dict[str, Any]) -> v2.Compose:
    """open_clip's own preprocessing of PIL images (resize and crop or pad by its mode, normalise), for tensors."""
    from open_clip.transform import CenterCropOrPad

    size = settings["size"]
    size = [size, size] if isinstance(size, int) else list(size)
    mode, bilinear = settings["resize_mode"], settings["interpolation"] == "bilinear"
    # As there: `random` is for training, and a size that is not square knows no other than bicubic.
    bilinear = bilinear and not (mode == "shortest" and size[0] != size[1])
    how = v2.InterpolationMode.BILINEAR if bilinear else v2.InterpolationMode.BICUBIC

    def resize(images: torch.Tensor) -> torch.Tensor:
        return v2.functional.resize(images, _resized(images, size, mode), how, antialias=True)

    return v2.Compose(
        [
            resize,
            CenterCropOrPad(size, settings["fill_color"]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings["mean"], settings["std"]),
        ]
    )


def _resized(images: torch.Tensor, size: list[int], mode: str) -> list[int]:
    """The size before crop and pad; one number is the shorter side's."""
    if mode == "squash":
        return size
    if mode == "shortest" and size[0] == size[1]:
        return size[:1]
    sides = images.shape[-2:]
    ratios = [side / target for side, target in zip(sides, size, strict=True)]
    ratio = max(ratios) if mode == "longest" else min(ratios)
    return [round(side / ratio) for side in sides]
