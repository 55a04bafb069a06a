"""Folders of a pipeline with a patch: how one is written, and the loader that installs it.

`base/` is the plain pipeline, `patch.json` names the method and its settings, `patch.safetensors` holds its tensors. There is
no model_index.json at the top, so that plain diffusers refuses the folder instead of drawing the base.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from typing_extensions import TypedDict

from sdr1.base.checked import checked
from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.base.plain_data import read_as
from sdr1.config.policy import ModelFiles, PolicyConfig
from sdr1.erasers.methods import METHODS
from sdr1.erasers.protocol import Erased, Patch
from sdr1.models import pipeline, pipeline_files, weight_files

BASE, PATCH, TENSORS = "base", "patch.json", "patch.safetensors"
_INSTALLED = "sdr1_patch"
"""Attribute of a pipeline that has one."""


class _Header(TypedDict):
    """Content of `patch.json`."""

    method: str
    settings: dict[str, Any]
    tensors_sha256: str


def write(erased: Erased, method: str, folder: Path) -> None:
    """Write what a method left into a new folder: a plain pipeline, or a pipeline with a patch."""
    if erased.patch is None:
        erased.pipeline.save_pretrained(folder)
        return
    erased.pipeline.save_pretrained(folder / BASE)
    tensors = {name: held.detach().cpu().contiguous() for name, held in erased.patch.tensors.items()}
    save_file(tensors, folder / TENSORS)
    header: _Header = {
        "method": method,
        "settings": erased.patch.settings.model_dump(mode="json"),
        "tensors_sha256": file_sha256(folder / TENSORS),
    }
    (folder / PATCH).write_text(json.dumps(header, indent=2) + "\n")


def plain(config: PolicyConfig) -> PolicyConfig:
    """The config of a folder's plain pipeline; the same config for everything that has no patch."""
    folder = Path(config.model)
    if not (folder / PATCH).is_file():
        return config
    return config.model_copy(update={"model": str(folder / BASE)})


def check(config: PolicyConfig) -> None:
    """As `pipeline_files.check`, of a folder with a patch too.

    Raises:
        UserError: as there, or the patch is none that sdr1 wrote.
    """
    pipeline_files.check(plain(config))
    _read(config)


def load(config: PolicyConfig) -> Any:
    """As `pipeline.load`, with the patch installed where the folder has one: the loader of all who draw and do not train.

    Raises:
        UserError: as there, or the patch is none that sdr1 wrote, or does not fit.
    """
    patch = _read(config)
    loaded = pipeline.load(plain(config))
    if patch is not None:
        install(patch, loaded)
    return loaded


def load_named(model: str, files: ModelFiles | None = None) -> Any:
    """As `load`, of a name that `--model` may hold."""
    return load(pipeline.named(model, files))


def install(patch: Patch, onto: Any) -> None:
    """Install a patch on a pipeline, for good."""
    patch.install(onto)
    setattr(onto, _INSTALLED, patch)


def check_guidance(of: Any, scale: float, field: str) -> None:
    """Raise UserError if a pipeline's patch can do nothing at that guidance scale."""
    patch: Patch | None = getattr(of, _INSTALLED, None)
    # At most 1 is none for diffusers.
    if patch is not None and patch.needs_guidance and scale <= 1:
        name = next(name for name, method in METHODS.items() if method.patch is type(patch))
        raise UserError(
            f"{field}: {scale}: {name}, the model's patch, is a part of classifier-free guidance, which there is none of at 1 "
            "or less; draw with a scale above 1"
        )


def sha256(of: Any) -> str:
    """Digest of all that a pipeline draws with: its weights, and its patch where it has one."""
    weights = pipeline.sha256(of)
    patch: Patch | None = getattr(of, _INSTALLED, None)
    if patch is None:
        return weights
    digest = hashlib.sha256(f"{weights} {type(patch).__name__} {patch.settings.model_dump_json()}".encode())
    for name, tensor in sorted(patch.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(config: PolicyConfig) -> Patch | None:
    folder = Path(config.model)
    if not (folder / PATCH).is_file():
        return None
    header = read_as(_Header, folder / PATCH, "policy.model")
    method = METHODS.get(header["method"])
    if method is None or method.patch is None:
        raise UserError(
            f"policy.model: {folder / PATCH}: method: {header['method']!r}: no method of sdr1 that has a patch; make the "
            "folder again with `sdr1 erase`"
        )
    try:
        settings = checked(method.patch.Settings, header["settings"])
    except UserError as error:
        raise UserError(f"policy.model: {folder / PATCH}: settings: {error}") from error
    # A default in the place of a lost value would be another patch.
    if lost := settings.__class__.model_fields.keys() - header["settings"].keys():
        raise UserError(
            f"policy.model: {folder / PATCH}: settings: {min(lost)} is missing; make the folder again with `sdr1 erase`"
        )
    # Their header first: a damaged file, or a pickle under its name, is one line.
    weight_files.shapes(folder / TENSORS, "policy.model")
    if file_sha256(folder / TENSORS) != header["tensors_sha256"]:
        raise UserError(
            f"policy.model: {folder / TENSORS}: is not what was written (sha256 differs); make the folder again with "
            "`sdr1 erase`"
        )
    return method.patch(settings, load_file(folder / TENSORS))
