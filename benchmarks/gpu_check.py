"""What only a GPU can tell, in under nine minutes: the ratio, equal bits, peak memory, and images trained a second.

First the sandbox's smallest run. Then a UNet of Stable Diffusion 1.x's size with random weights at 512 x 512, in one process
without Ray. Every part has seconds of its own; one that does not fit into what is left is skipped and says so.
`outputs/gpu_check.json` is written after each part.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import models
from benchmarks.suite.reference_loop import TASK, Ours, Reference
from sdr1.base.errors import reason
from sdr1.base.files import write_text
from sdr1.base.process import prepare_process
from sdr1.base.records import Scores
from sdr1.config.files import load
from sdr1.config.training import Config
from sdr1.models.flat import checksum
from sdr1.planning.costs import LiveBytes, parameter_bytes
from sdr1.planning.counts import Counts, count
from sdr1.planning.plan import plan
from sdr1.planning.shapes import SD_1
from sdr1.training.objectives.objective import RATIO_GAP
from sdr1.training.observers import journal
from sdr1.training.run import train

OUT = Path("outputs/gpu_check.json")
LIMIT_SECONDS = 520.0


class Size(NamedTuple):
    """How large everything is."""

    device: str
    parts: dict[str, dict[str, Any]]
    """Of the pipeline, in place of the sandbox's."""
    encoder: str | None
    """open_clip architecture of the reward; None is the sandbox's."""
    matrix: int
    """Side of the matrices whose product says what the chip can do."""
    overrides: list[str]
    patience: float
    """How many times as long as on a GPU a part may take."""
    short: dict[str, list[str]]
    """What makes a group of an objective short: seconds of a whole one follow from the counts."""


FULL = Size(
    device="cuda",
    parts=SD_1,
    encoder="ViT-H-14",
    matrix=8192,
    overrides=["policy.size=512"],
    patience=1,
    short={"grpo": ["policy.steps=3", "policy.noise_window=[0,2]"], "forward": []},
)
TINY = Size(
    device="cpu",
    parts={
        "unet": {
            "sample_size": 8,
            "block_out_channels": (16, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 96,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
        }
    },
    encoder=None,
    matrix=256,
    overrides=[
        "policy.size=null",
        "rollout.group_size=4",
        "learner.micro_batch=4",
        "reward.anchors=sandbox",
    ],
    patience=10,
    short={
        "grpo": ["policy.steps=3", "policy.noise_window=[0,2]"],
        "forward": ["policy.steps=3", "learner.forward.timesteps=2"],
    },
)


class Check:
    """The parts of the check; the models lie in `folder`."""

    def __init__(self, size: Size, folder: Path) -> None:
        self._size, self._folder = size, folder
        self._places = [f"{role}.device={size.device}" for role in ("learner", "rollout", "reward")]
        self._peak: float | None = None
        self._flops: dict[str, float] = {}

    def parts(self) -> dict[str, tuple[float, Callable[[], dict[str, Any]]]]:
        """By name the seconds that a part may take, and what it finds."""
        main, lora, forward = "sd14-main", "sd14-lora", "sd14-forward"
        nhwc, compiled = "policy.channels_last=true", "policy.compile=true"
        return {
            "sandbox": (60, self.sandbox),
            "models": (90, self.models),
            "peak": (15, self.peak),
            "ratio/float32": (60, partial(self.ratio, "float32")),
            "ratio/bfloat16": (60, partial(self.ratio, "bfloat16")),
            "bits": (90, self.bits),
            "memory/sd14-main": (90, partial(self.memory, main)),
            "speed/reference": (60, self.reference),
            "speed/sd14-main": (75, partial(self.speed, main)),
            "speed/sd14-forward": (75, partial(self.speed, forward)),
            "speed/sd14-lora": (75, partial(self.speed, lora)),
            "speed/sd14-main channels_last": (75, partial(self.speed, main, nhwc)),
            "adamw": (45, self.adamw),
            "speed/sd14-main compile": (120, partial(self.speed, main, compiled)),
            "memory/sd14-lora": (75, partial(self.memory, lora)),
            "speed/sd14-forward channels_last": (60, partial(self.speed, forward, nhwc)),
            "speed/sd14-lora channels_last": (60, partial(self.speed, lora, nhwc)),
            "speed/sd14-forward compile": (120, partial(self.speed, forward, compiled)),
            "speed/sd14-lora compile": (120, partial(self.speed, lora, compiled)),
        }

    def sandbox(self) -> dict[str, Any]:
        """A training from end to end. Its first steps are drawn as a batch of one and trained as one of four: |rho - 1| before
        the first update."""
        folder = self._folder / "sandbox"
        config = load(
            "sandbox-smoke.yaml", [*self._places, f"run.directory={folder}", "tracking.enabled=false"]
        )
        train(config, local=True)
        first, *_ = journal.read(folder / journal.NAME)[0]
        return {"largest_gap": max(value for name, value in first.items() if name.startswith(RATIO_GAP))}

    def models(self) -> dict[str, Any]:
        """Write the folders that every other part reads."""
        size = models.pipeline(self._folder / "pipeline", self._size.parts)
        if self._size.encoder is not None:
            models.encoder(self._folder / "encoder", self._size.encoder)
        return {"unet_bytes": size}

    def config(self, preset: str, *more: str, short: bool = True) -> Config:
        """A preset on this chip with the models of random weights; one group is an update."""
        encoder = f"local-dir:{self._folder}/encoder" if self._size.encoder else "sandbox"
        overrides = [
            f"policy.model={self._folder}/pipeline",
            f"reward.model={encoder}",
            *self._places,
            *self._size.overrides,
        ]
        if short:
            objective = load(f"configs/{preset}.yaml").learner.objective
            overrides += [
                "prompts.per_iteration=1",
                "learner.groups_per_update=1",
                *self._size.short[objective],
            ]
        return load(f"configs/{preset}.yaml", [*overrides, *more])

    def peak(self) -> dict[str, Any]:
        """The chip's bf16 FLOP/s, by a product of two large matrices."""
        side = self._size.matrix
        one, two = (torch.randn(side, side, device=self._size.device, dtype=torch.bfloat16) for _ in range(2))
        best = min(self._seconds(lambda: one @ two)[1] for _ in range(10))
        self._peak = 2 * side**3 / best
        return {"bf16_flops_per_second": self._peak, "matrix": side}

    def ratio(self, precision: str) -> dict[str, Any]:
        """|rho - 1| before the first update, at most."""
        ours = Ours(self.config("sd14-main", f"policy.precision={precision}"))
        rollout = ours.rollout()
        rewards = np.linspace(-1, 1, len(rollout.images), dtype=np.float32)
        figures = ours.accumulate(rollout, Scores(rewards, None, 0.0)).figures
        gap = max(value for name, value in figures.items() if name.startswith(RATIO_GAP))
        tolerance = ours.objective.tolerance
        return {"largest_gap": gap, "tolerance": tolerance, "is_one": gap <= tolerance}

    def bits(self) -> dict[str, Any]:
        """Whether two runs of a group leave the same bits; if not where they part, and what torch says of it."""
        make = partial(self.config, "sd14-main")
        different = differences(*(fingerprint(make()) for _ in range(2)))
        found: dict[str, Any] = {
            "same_bits": not different,
            "different": different[:10],
            "count": len(different),
        }
        if different:
            # Only warned of, attention's backward would stay as it is.
            torch.use_deterministic_algorithms(True)
            try:
                again = [fingerprint(make()) for _ in range(2)]
                found["same_bits_with_deterministic_algorithms"] = not differences(*again)
            except RuntimeError as error:
                found["not_deterministic"] = reason(error)
            finally:
                torch.use_deterministic_algorithms(False)
        return found

    def memory(self, preset: str) -> dict[str, Any]:
        """Bytes of tensors at each role's peak beside the plan's, what a process has besides left out."""
        config = self.config(preset)
        ours = Ours(config)
        pipeline = ours.policy.pipeline
        # Adapters are the UNet's parameters too, and no copy of it is kept for the base's predictions.
        held = sum(parameter_bytes(part) for part in (ours.policy.unet, pipeline.vae, pipeline.text_encoder))
        copies = config.policy.trainable == "full" and config.learner.kl_weight > 0
        rollout, drawing = self._peak_bytes(ours.rollout)
        scores, scoring = self._peak_bytes(lambda: ours.score(rollout))

        def two_updates() -> None:
            for _ in range(2):
                ours.accumulate(rollout, scores)
                ours.step()

        _, learning = self._peak_bytes(two_updates)
        measured = {
            "rollout": held + copies * parameter_bytes(ours.policy.unet) + drawing,
            "reward": scoring,
            "learner": held + learning,
        }
        result = {}
        for role, planned in plan(config)["memory"].items():
            bytes_planned = planned["total"] - planned["process"] - planned.get("published", 0)
            result[role] = {
                "measured": measured[role],
                "planned": bytes_planned,
                "ratio": measured[role] / bytes_planned,
            }
        return result

    def reference(self) -> dict[str, Any]:
        """The released code's loop, which shares no step within a group."""
        preset, own = "sd14-reference", "policy.initial_noise=sample"
        return self._of_a_whole_run(Reference(self.config(preset, own)), preset, own)

    def speed(self, preset: str, *more: str) -> dict[str, Any]:
        return self._of_a_whole_run(Ours(self.config(preset, *more)), preset, *more)

    def _of_a_whole_run(self, loop: Any, preset: str, *more: str) -> dict[str, Any]:
        config = self.config(preset, *more)
        self._group(loop, config)
        times = [self._group(loop, config) for _ in range(2)]
        best = {part: min(each[part] for each in times) for part in times[0]}
        whole = self.config(preset, *more, short=False)
        each = seconds_per_image(best, config, count(config), count(whole))
        if preset not in self._flops:
            self._flops[preset] = sum(plan(whole)["flops"]["per_image"].values())
        images, flops = 1 / sum(each.values()), self._flops[preset]
        return {
            "images_per_second": images,
            "seconds_per_image": each,
            "flops_per_image": flops,
            "share_of_bf16_peak": None if self._peak is None else images * flops / self._peak,
            "short_group_seconds": best,
        }

    def _group(self, loop: Any, config: Config) -> dict[str, float]:
        """Seconds of a short group by its parts."""
        took = {}
        latents = torch.randn(config.rollout.group_size, *loop.policy.latent_shape, device=self._size.device)
        _, took["decode"] = self._seconds(lambda: loop.policy.decode(latents, TASK))
        rollout, took["rollout"] = self._seconds(loop.rollout)
        scores, took["score"] = self._seconds(lambda: loop.score(rollout))
        _, took["accumulate"] = self._seconds(lambda: loop.accumulate(rollout, scores))
        _, took["step"] = self._seconds(loop.step)
        return took

    def adamw(self) -> dict[str, Any]:
        """Seconds of AdamW's step on the whole UNet, as torch does it by itself and fused."""
        ours = Ours(self.config("sd14-main"))
        for parameter in ours.policy.parameters:
            parameter.grad = torch.full_like(parameter, 1e-4)
        found = {}
        for name, fused in (("default", None), ("fused", True)):
            optimizer = torch.optim.AdamW(ours.policy.parameters, lr=1e-5, fused=fused)
            optimizer.step()
            found[f"{name}_seconds"] = min(self._seconds(optimizer.step)[1] for _ in range(3))
            del optimizer
        return found

    def _seconds(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self._wait()
        begin = time.perf_counter()
        result = call()
        self._wait()
        return result, time.perf_counter() - begin

    def _wait(self) -> None:
        if self._size.device != "cpu":
            torch.cuda.synchronize()

    def _peak_bytes(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """The most bytes of tensors that a call adds to those that are there."""
        gc.collect()
        if self._size.device == "cpu":
            with LiveBytes() as live:
                result = call()
            return result, live.peak
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before


def seconds_per_image(
    short_group: dict[str, float], config: Config, short: Counts, whole: Counts
) -> dict[str, float]:
    """What an image of the whole run takes by role, one after the other: a short group's seconds an evaluation, times the
    whole run's evaluations."""
    samples, groups = config.rollout.group_size, short.groups
    drawn = (short_group["rollout"] - short_group["decode"]) * groups / (short.rollout + short.reference)
    trained = short_group["accumulate"] * groups / short.learner
    return {
        "rollout": drawn * (whole.rollout + whole.reference) / whole.images + short_group["decode"] / samples,
        "reward": short_group["score"] / samples,
        "learner": trained * whole.learner / whole.images
        + short_group["step"] * whole.updates / whole.images,
    }


def fingerprint(config: Config) -> dict[str, int]:
    """Checksums of one group through everything, in the order in which they come about."""
    # What the run before left is in circles.
    gc.collect()
    ours = Ours(config)
    rollout = ours.rollout()
    scores = ours.score(rollout)
    found = {
        "states": _checksum(rollout.experience.states),
        "images": _checksum(rollout.images),
        "rewards": _checksum(scores.rewards),
    }
    ours.accumulate(rollout, scores)
    for name, parameter in ours.policy.unet.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = _checksum(parameter.grad.cpu().numpy())
    ours.step()
    return {**found, "weights": ours.learner.checksum()}


def differences(one: dict[str, int], two: dict[str, int]) -> list[str]:
    """Names whose checksums differ, in their order."""
    return [name for name in one if one[name] != two[name]]


def _checksum(array: np.ndarray) -> int:
    return checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


class OutOfTime(BaseException):
    """A part's seconds are over; not an Exception, so that nothing on the way swallows it."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block once that many seconds are over."""

    def end(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(most: float, left: float, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part finds, or why there is nothing."""
    if left < most:
        return {"skipped": f"it may take {most:.0f} s, and {max(0, left):.0f} s are left"}
    begin = time.monotonic()
    try:
        with within(most):
            found = call()
    except OutOfTime:
        found = {"skipped": f"its {most:.0f} s were not enough"}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {reason(error)}"}
    return {**found, "took_seconds": round(time.monotonic() - begin, 1)}


def run(
    size: Size, out: Path = OUT, limit: float = LIMIT_SECONDS, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Every part, or those whose names begin with one of `only`, and the JSON so far after each."""
    begin = time.monotonic()
    cuda = size.device != "cpu"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "size": "full" if size is FULL else "tiny",
        "torch": torch.__version__,
        "limit_seconds": limit,
        "parts": {},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        for name, (most, call) in Check(size, Path(folder)).parts().items():
            if only and not name.startswith(("models", "peak", *only)):
                continue
            # A policy in float32 turns it off for the whole process; decoding in the next part would be slower.
            torch.backends.cudnn.allow_tf32 = True
            part = attempt(size.patience * most, limit - (time.monotonic() - begin), call)
            found["parts"][name] = part
            write_text(out, json.dumps(found, indent=2) + "\n")
            print(f"{name}: {json.dumps(part)}", flush=True)
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the same on the CPU with a tiny UNet")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds for all parts on a GPU")
    parser.add_argument(
        "--only", action="append", default=[], help="parts whose names begin so; may be repeated"
    )
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is visible here; --tiny runs the same on the CPU with a tiny UNet")
    prepare_process(1)
    # cuBLAS reads it at its first call, and is deterministic with it alone.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    size = TINY if options.tiny else FULL
    found = run(size, limit=size.patience * options.limit, only=options.only)
    raise SystemExit(any("failed" in part for part in found["parts"].values()))


if __name__ == "__main__":
    main()
