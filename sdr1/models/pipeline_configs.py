"""A pipeline's configs: fetched, read, and built into its parts without a weight in memory."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sdr1.base.errors import Unreachable, UserError, reason
from sdr1.base.plain_data import read_json, shown
from sdr1.config.policy import PolicyConfig
from sdr1.models import schedulers, weight_files

WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""The parts that have weights, and the stem of their files in a pipeline folder."""
_OLD_NAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""Of the VAE's attention in Stable Diffusion 1.x's own files; the libraries' loaders rename them and `text_model.`."""


class Parts(NamedTuple):
    """What a pipeline's configs describe: modules on the meta device, tokenizer and DDIM scheduler."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


def build(folder: Path, config: PolicyConfig) -> Parts:
    """The parts that the folder's configs describe: the one place where the libraries are given what anybody wrote.

    Raises:
        UserError: a config is missing or damaged, or describes nothing that can be built here.
    """
    unet = read(folder / "unet" / "config.json", config, "no UNet config")
    text = read(folder / "text_encoder" / "config.json", config, "no text encoder config")
    scheduler = read(folder / "scheduler" / "scheduler_config.json", config, "no scheduler config")
    vae = read(folder / "vae" / "config.json", config, "no VAE config")
    made = {
        name: built(name, json.dumps(described, sort_keys=True), f"{place(config)}: {name}/")
        for name, described in (
            ("unet", unet),
            ("vae", vae),
            ("text_encoder", text),
            ("scheduler", scheduler),
        )
    }
    tokenizer = _tokenizer(folder / "tokenizer", made["text_encoder"], config)
    return Parts(**made, tokenizer=tokenizer)


@functools.lru_cache(maxsize=16)
def built(part: str, described: str, where: str) -> Any:
    """A module on the meta device, or a DDIM scheduler, as a config's JSON describes it; kept, since it is asked for often."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    values = json.loads(described)
    _require_sane(values, where, 10_000 if part == "scheduler" else 1_000_000)
    try:
        if part == "scheduler":
            return schedulers.for_latents(DDIMScheduler, values, where)
        with torch.device("meta"):
            if part == "text_encoder":
                return CLIPTextModel(CLIPTextConfig(**values.get("text_config", values))).eval()
            kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
            with _quiet():
                return kinds[part].from_config(values).eval()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}: its config describes nothing that can be built here: {reason(error)}; fetch it again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers warns of in a config, it says when the model is loaded: a refused one gets its one line alone."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _require_sane(values: Any, where: str, most: int, name: str = "") -> None:
    """Raise UserError for numbers of which the libraries would make a module or a table without end."""
    if isinstance(values, dict):
        for key, value in values.items():
            # A scale has a check that says what it is for.
            if key != "scaling_factor":
                _require_sane(value, where, most, key)
    elif isinstance(values, list):
        if len(values) > most:
            raise UserError(f"{where}: {name} is a list of {len(values):,}; fetch the config again")
        for value in values:
            _require_sane(value, where, most, name)
    elif isinstance(values, int | float):
        limit = 100 if "layers" in name else most
        if not abs(values) <= (limit if isinstance(values, int) else math.inf):
            raise UserError(
                f"{where}: {name} {shown(values)}: more than any model has; fetch the config again"
            )


def _tokenizer(folder: Path, text: Any, config: PolicyConfig) -> Any:
    from transformers import CLIPTokenizer

    # Without its files transformers makes a tokenizer of no words, and none without a length cuts a prompt.
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise UserError(
            f"{place(config)}: tokenizer/ has no vocab.json and merges.txt; copy tokenizer/ from the model it was made "
            "from"
        )
    length = read(folder / "tokenizer_config.json", config, "no tokenizer config").get("model_max_length")
    places = text.config.max_position_embeddings
    if type(length) is not int or not 2 <= length <= places:
        raise UserError(
            f"{place(config)}: tokenizer/tokenizer_config.json: model_max_length {shown(length)}: the text encoder reads "
            f"at most {places} tokens; set it to {places}"
        )
    try:
        made = CLIPTokenizer.from_pretrained(folder.absolute())
        ids = made("a", padding="max_length", max_length=length, truncation=True).input_ids
        highest = max([*ids, *made.get_vocab().values()])
    except Exception as error:
        raise UserError(
            f"{place(config)}: tokenizer/ does not load ({reason(error)}); fetch it again"
        ) from error
    if highest >= text.config.vocab_size:
        raise UserError(
            f"{place(config)}: tokenizer/ has a token {highest}, the text encoder knows {text.config.vocab_size}: parts "
            "of different models; take both from one"
        )
    return made


def shapes_of(module: Any) -> weight_files.Shapes:
    """Of a module's tensors, by their names of today."""
    return {renamed(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def renamed(name: str) -> str:
    """A tensor's name as today's modules call it."""
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def fetch(where: str, name: str, revision: str | None) -> Path:
    """The folder of a hub id's configs and tokenizer, downloaded unless cached.

    Raises:
        Unreachable: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.txt"]))
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"{where}: neither a folder here nor a hub id that can be reached: {reason(error)}; check the name, or download it "
            "and give the folder"
        ) from error


def read(file: Path, config: PolicyConfig, problem: str) -> dict[str, Any]:
    """The object in a file of the pipeline's; `problem` says what there is none of where it is missing.

    Raises:
        UserError: it is missing, or holds no object.
    """
    if not file.is_file():
        raise UserError(
            f"{place(config)}: {problem}: {file.parent.name}/{file.name} is missing; give a folder that diffusers' "
            "save_pretrained wrote"
        )
    return object_in(file, place(config))


def object_in(file: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it holds none.
    """
    try:
        held = read_json(file, where)
    except UserError as error:
        raise UserError(f"{error}; fetch it again") from error
    if not isinstance(held, dict):
        raise UserError(f"{where}: {file} holds no object; fetch it again")
    return held


def place(config: PolicyConfig) -> str:
    """Field and value of the model, for error lines."""
    return f"policy.model: {config.model!r}"
