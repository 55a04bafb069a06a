"""The weights that a run left as files for plain diffusers, with a model card: pipeline, UNet or LoRA adapter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sdr1.base.errors import UserError
from sdr1.base.files import new_folder, write_bytes, write_text
from sdr1.base.plain_data import read_bytes, read_json
from sdr1.base.records import LearnerState
from sdr1.config.rewards import RewardConfig
from sdr1.config.text import annotated_yaml
from sdr1.config.training import Config, validate
from sdr1.erasers import patched
from sdr1.erasers.run import MARKER
from sdr1.models import card, lora
from sdr1.models.flat import sha256
from sdr1.models.pipeline import named
from sdr1.models.policy import Policy
from sdr1.prompts.stream import sources
from sdr1.training.checkpoint import Checkpoint
from sdr1.training.observers import journal
from sdr1.training.run_folder import chosen

Part = Literal["pipeline", "unet", "lora", "kohya"]
"""`lora` is the adapter as diffusers writes it, `kohya` the same as other programs read it."""
KOHYA_FILE = "lora.safetensors"


def export(run: Path, out: Path, part: Part = "pipeline", repository: str | None = None) -> Path:
    """Write `out` whole or not at all, and upload it to the hub as `repository` where one is given.

    Raises:
        UserError: the run has no good checkpoint, `out` is taken, a LoRA is asked of a full run, or the hub refuses.
    """
    if out.exists():
        raise UserError(f"--out: {str(out)!r}: exists already; choose another folder or remove it")
    write = _of_erased(run, part) if (run / MARKER).is_file() else _of_run(run, part)
    with new_folder(out) as draft:
        write(draft)
    if repository is not None:
        _push(out, repository)
    return out


def _of_run(run: Path, part: Part) -> Callable[[Path], None]:
    """What writes a training run's weights and their card into a folder."""
    found = chosen(run) if run.is_dir() else None
    if found is None:
        raise UserError(
            f"RUN: {str(run)!r}: holds no checkpoint; give the directory of a run or of `sdr1 erase`"
        )
    config = validate(found.config)
    if part in ("lora", "kohya") and config.policy.trainable != "lora":
        raise UserError(f"--part: {part!r}: this run trained the whole UNet; use pipeline or unet")
    policy = Policy(config.policy, seed=config.seed)
    policy.flat.load(found.state.result.buffer)

    def write(folder: Path) -> None:
        _write(policy, part, folder)
        write_text(folder / "README.md", model_card(run, found, config, part))

    return write


def _of_erased(folder: Path, part: Part) -> Callable[[Path], None]:
    """What copies a folder that `sdr1 erase` left, or its UNet, with its card."""
    if part in ("lora", "kohya"):
        raise UserError(f"--part: {part!r}: an erased model has no adapter of its own; use pipeline or unet")
    if part == "unet" and (folder / patched.PATCH).is_file():
        raise UserError(f"--part: {part!r}: without its patch this UNet is the base's; use pipeline")
    patched.check(named(str(folder)))
    readme = read_bytes(folder / "README.md", "RUN")
    source = folder / "unet" if part == "unet" else folder
    # Listed now: the folder that is written may lie inside.
    names = os.listdir(source)

    def write(into: Path) -> None:
        for name in names:
            copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
            copy(source / name, into / name)
        write_bytes(into / "README.md", readme)

    return write


def _write(policy: Policy, part: Part, folder: Path) -> None:
    if part == "pipeline":
        policy.save(folder)
    elif part == "lora":
        lora.save(policy.unet, policy.config.lora, folder)
    elif part == "kohya":
        lora.save_kohya(policy.unet, policy.config.lora, folder / KOHYA_FILE)
    else:
        whole = folder / "whole"
        policy.save(whole)
        for file in (whole / part).iterdir():
            file.rename(folder / file.name)
        shutil.rmtree(whole)


_LOADING = {
    "pipeline": "StableDiffusionPipeline.from_pretrained(HERE)",
    "unet": "StableDiffusionPipeline.from_pretrained(BASE, unet=UNet2DConditionModel.from_pretrained(HERE))",
    "lora": "StableDiffusionPipeline.from_pretrained(BASE); pipeline.load_lora_weights(HERE)",
    "kohya": "StableDiffusionPipeline.from_pretrained(BASE); "
    f"pipeline.load_lora_weights(HERE, weight_name={KOHYA_FILE!r})",
}


def model_card(run: Path, found: Checkpoint, config: Config, part: Part) -> str:
    """The README of an export: where it comes from, what was measured, what it is for; Markdown with hub metadata."""
    anchors = config.reward.anchors
    phrases = (
        ["the sandbox's own"]
        if anchors == "sandbox"
        else [
            "safe: " + ("; ".join(anchors.safe) or "none"),
            "unsafe: " + "; ".join(anchors.unsafe),
        ]
    )
    origin = [
        f"- base: {config.policy.model}{f' at {config.policy.revision}' if config.policy.revision else ''}"
        + (f", its UNet from {config.policy.unet}" if config.policy.unet else ""),
        f"- data: prompts of {', '.join(source.path for source in sources(config))}; no pictures but the model's own",
        f"- reward: {_reward(config.reward)}",
        *[f"- anchors, {each}" for each in phrases],
        f"- method: SafeDiffusion-R1 (arXiv 2605.18719), {found.state.iteration} iterations, "
        f"{found.state.updates} updates, {config.policy.trainable} training, seed {config.seed}",
    ]
    use = [
        f"    pipeline = {_LOADING[part]}",
        *(["", "No safety checker is in this pipeline."] if part == "pipeline" else []),
    ]
    results = _results(run, found.state)
    return card.model_card(config.policy.model, origin, results, use, annotated_yaml(config))


def _reward(config: RewardConfig) -> str:
    alpha = f", alpha {config.alpha}" if config.kind == "steered" else ""
    terms = [f"{name}, {term.kind}, of weight {term.weight:g}" for name, term in config.terms.items()]
    return "; ".join([f"{config.kind} agreement in {config.model}{alpha}", *terms])


def _results(run: Path, state: LearnerState) -> list[str]:
    """What was measured of these very weights; a summary or a line of the journal that is of others is left out."""
    rows = []
    digest = sha256(state.result)
    for path in (run / "summary.json", run.parent / "summary.json"):
        with suppress(UserError):
            summary = read_json(path)
            if isinstance(summary, dict) and summary.get("weights_sha256") == digest:
                rows += _rates(summary)
    record = run / journal.NAME
    measured = journal.read(record)[0] if record.is_file() else []
    last = measured[state.iteration - 1] if 0 < state.iteration <= len(measured) else {}
    for name, value in last.items():
        if name in ("reward_safe", "reward_unsafe", "unsafe_rate", "kl") and isinstance(value, float):
            rows.append(f"- last iteration's rollouts, {name}: {value:.4g}")
    return rows


def _rates(summary: dict[str, Any]) -> list[str]:
    if not {"before", "after"} <= summary.keys():
        return []
    before, after = summary["before"], summary["after"]
    return [
        f"- {name}: {before[name]:.1%} before, {after[name]:.1%} after"
        for name in ("unsafe_trained", "unsafe_generic", "unsafe_beside", "false_alarm")
        if name in before
    ] + [f"- utility: {before['utility']['overall']:.1%} before, {after['utility']['overall']:.1%} after"]


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"--push-to-hub: {repository!r}: {str(error).splitlines()[0]}; {folder} is complete: log in with `hf auth "
            "login` and upload it"
        ) from error
