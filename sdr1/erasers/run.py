"""`sdr1 erase`: from a method's name to a folder of weights, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import TypedDict

from sdr1.base.checked import checked
from sdr1.base.errors import UserError
from sdr1.base.files import new_folder, refuse_foreign, remove_partial, write_text
from sdr1.base.plain_data import read_as
from sdr1.base.process import peak_memory, prepare_process, require_device
from sdr1.base.progress import counted
from sdr1.base.section import SANDBOX
from sdr1.config.text import annotated_yaml
from sdr1.erasers import patched, tasks
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods import METHODS
from sdr1.erasers.protocol import Erased, Eraser, Task
from sdr1.models import card, pipeline_files, schedulers
from sdr1.models.pipeline import load, named, sha256

MARKER = "erase.json"
"""What was asked for, and what it took; the file by which sdr1 knows the folder."""
SANDBOX_BUDGET = 130_000
"""UNet evaluations that the sandbox's preset with GRPO takes, by which its other methods are measured."""


class Told(TypedDict):
    """Content of `erase.json`: what was asked for, then what it took."""

    method: str
    settings: dict[str, Any]
    model: str
    model_sha256: str
    task_sha256: str
    seed: int
    budget: int | None
    device: str
    unet_evaluations: int
    seconds: float
    peak_memory_bytes: int


def listed() -> list[dict[str, Any]]:
    """The methods as `sdr1 erase list --json` gives them; costs are of the sandbox's task."""
    task = tasks.of_sandbox(0)
    return [
        {
            "name": name,
            "kind": method.kind,
            "changes": method.changes,
            "needs": method.needs,
            "patch": method.patch is not None,
            "unet_evaluations": settings_of(method, True, {}).unet_evaluations(task),
            "source": method.source,
        }
        for name, method in METHODS.items()
    ]


def constants(method: str) -> str:
    """A method's constants as YAML: the official values with their meaning, and behind them what is another on the sandbox.

    Raises:
        UserError: there is no such method.
    """
    kind = _known(method)
    shown = {
        name: f"official; on the sandbox {json.dumps(kind.sandbox[name])}"
        if name in kind.sandbox
        else "official"
        for name in kind.model_fields
    }
    return annotated_yaml(settings_of(kind, False, {}), shown)


def settings_of(method: type[Eraser], in_sandbox: bool, values: dict[str, Any]) -> Eraser:
    """The record of a method's constants, official or the sandbox's, with a user's values over them.

    Raises:
        UserError: a value is wrong.
    """
    return checked(method, {**(method.sandbox if in_sandbox else {}), **values})


def erase(
    method: str,
    model: str,
    out: Path,
    values: dict[str, Any],
    *,
    prompts: str | None = None,
    words: tuple[str, ...] = (),
    seed: int = 0,
    budget: int | None = None,
    device: str = "cpu",
) -> Told:
    """Make `out` of a model by a method; returns what is in its `erase.json`. A finished folder of the same request is left
    as it is; what was stopped on the way left nothing, and starts anew.

    Raises:
        UserError: method, model, a setting or a prompt file is wrong, or `out` is taken; nothing was written.
    """
    kind = _known(method)
    refuse_foreign(out, MARKER, "erased model", "--out")
    if prompts == SANDBOX and words:
        raise UserError(
            f"--concept: {words[0]!r}: the sandbox's own prompts say what is erased; leave it out, or give other prompts"
        )
    in_sandbox = prompts == SANDBOX or (prompts is None and not words and model == SANDBOX)
    eraser = settings_of(kind, in_sandbox, values)
    task = tasks.of_sandbox(seed) if in_sandbox else tasks.of_words(words, prompts, seed)
    require_device("--device", device)
    prepare_process(1)
    pipeline_files.check(named(model))
    base = load(named(model))
    schedulers.check(task.sampler.scheduler, task.sampler.steps, base.scheduler.config)
    if budget is None and in_sandbox:
        budget = SANDBOX_BUDGET
    request = {
        "method": method,
        "settings": eraser.model_dump(mode="json"),
        "model": model,
        "model_sha256": sha256(base),
        "task_sha256": hashlib.sha256(json.dumps(asdict(task)).encode()).hexdigest(),
        "seed": seed,
        "budget": budget,
        "device": device,
    }
    if (found := _finished(out, request)) is not None:
        return found
    return _make(out, eraser, base, task, request)


def _known(method: str) -> type[Eraser]:
    if method not in METHODS:
        raise UserError(f"METHOD: {method!r}: no such method; use one of {', '.join(METHODS)}, or list")
    return METHODS[method]


def _make(out: Path, eraser: Eraser, base: Any, task: Task, request: dict[str, Any]) -> Told:
    planned, budget, device = eraser.unet_evaluations(task), request["budget"], request["device"]
    print(f"{eraser.name}: {planned:,} UNet evaluations expected, {_limit(budget)}", flush=True)
    begun = time.monotonic()
    # Made now: what the disk refuses is known before hours of work.
    with new_folder(out) as draft:
        expected = planned if budget is None else min(planned, budget)
        with counted({eraser.name: expected or None}) as advance:
            meter = Meter(budget, partial(advance, eraser.name))
            erased = eraser(base.to(device), task, meter)
        told = Told(
            **request,  # type: ignore[typeddict-item]
            unet_evaluations=meter.spent,
            seconds=round(time.monotonic() - begun, 2),
            peak_memory_bytes=peak_memory(device),
        )
        patched.write(erased, eraser.name, draft)
        write_text(draft / "README.md", _card(erased, eraser, task, told))
        write_text(draft / MARKER, json.dumps(told, indent=2) + "\n")
        if out.is_dir():
            remove_partial(out)
    return told


def _finished(out: Path, request: dict[str, Any]) -> Told | None:
    if not (out / MARKER).is_file():
        return None
    found = read_as(Told, out / MARKER, "--out")
    # A model is its weights, wherever they lie.
    for name, value in request.items():
        if name != "model" and found[name] != value:  # type: ignore[literal-required]
            raise UserError(
                f"--out: {str(out)!r}: holds an erased model of another {name}; choose another folder or remove it"
            )
    return found


def _card(erased: Erased, eraser: Eraser, task: Task, told: Told) -> str:
    origin = [
        f"- base: {told['model']}",
        f"- method: {eraser.name}, {eraser.kind}; {eraser.source}",
        f"- changed: {eraser.changes}",
        f"- erased: {', '.join(task.words)}; {len(task.unsafe):,} prompts, {len(task.retain):,} to keep",
        f"- cost: {told['unet_evaluations']:,} UNet evaluations, {told['seconds']:,} seconds; seed {told['seed']}",
    ]
    use = ["    pipeline = StableDiffusionPipeline.from_pretrained(HERE)", "", "No safety checker is in it."]
    if erased.patch is not None:
        use = [
            f"{eraser.name} works while the model draws, through a patch of its UNet. `sdr1 sample HERE` and",
            "`sdr1 evaluate --model HERE` install it, and so does",
            "",
            "    pipeline = sdr1.erasers.patched.load_named(HERE)",
            "",
            "Plain diffusers refuses this folder. `base/` is the base as it was: drawn without the patch it is not safer.",
        ]
    return card.model_card(told["model"], origin, [], use, yaml.safe_dump(told["settings"], sort_keys=False))


def _limit(budget: int | None) -> str:
    return "no budget" if budget is None else f"{budget:,} allowed"
