"""What every stage of the recipe shares: the training loop with its checkpoint, and atomic files."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from sdr1.base.files import write_bytes, write_text

Schedule = Callable[[float], float]


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    write_bytes(path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def write_json(value: Any, path: Path) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def warmup_then_linear(warmup: float, decay_from: float) -> Schedule:
    """The learning rate's factor over training progress in [0, 1]: up, flat, and down to 2 % in a straight line."""

    def factor(progress: float) -> float:
        rise = min(1.0, (progress + 1e-3) / warmup)
        fall = min(1.0, (1 - progress) / (1 - decay_from))
        return rise * max(fall, 0.02)

    return factor


def train(
    name: str,
    module: torch.nn.Module,
    groups: list[dict],
    loss_at: Callable[[int], dict[str, torch.Tensor]],
    steps: int,
    schedule: Schedule,
    folder: Path,
    after_step: Callable[[int], None] = lambda step: None,
    checkpoint_every: int = 200,
) -> None:
    """Trains `module` with AdamW for a fixed number of steps and resumes from `folder` where it was stopped.

    `groups` are AdamW's parameter groups; `loss_at(step)` returns the named losses, of which "loss" is minimised,
    and must draw all its randomness from `step`. Raises FloatingPointError on a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=1e-3)
    rates = [group["lr"] for group in optimizer.param_groups]
    weights, state = folder / f"{name}.safetensors", folder / f"{name}.optimizer.pt"
    first = 0
    if weights.exists() and state.exists():
        saved = torch.load(state, weights_only=True)
        module.load_state_dict(load_tensors(weights))
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
        print(f"[{name}] resumes at step {first} of {steps}", flush=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sums: dict[str, float] = {}
    started, seen = time.monotonic(), 0
    for step in range(first, steps):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * schedule(step / steps)
        losses = loss_at(step)
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(f"{name}: the loss is {losses['loss'].item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        after_step(step)
        seen += 1
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        done = step + 1
        if done % 50 == 0 or done == steps:
            pace = (time.monotonic() - started) / (done - first)
            means = " ".join(f"{key} {total / seen:.4f}" for key, total in sums.items())
            left = pace * (steps - done)
            print(
                f"[{name}] {done}/{steps} {means} | {pace:.3f} s/step, {left / 60:.1f} min left", flush=True
            )
            sums, seen = {}, 0
        if done % checkpoint_every == 0 or done == steps:
            save_tensors(module.state_dict(), weights)
            # Into memory first: torch says of a full disk that its writer is no file.
            content = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "step": done}, content)
            write_bytes(state, content.getvalue())
