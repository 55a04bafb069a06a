"""Writing and reading a checkpoint of 1.7 GB of random weights, over a plain file write and one memcpy of the bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.common import report, seconds
from sdr1.base.files import sync
from sdr1.base.process import peak_memory
from sdr1.base.records import LearnerState, Weights
from sdr1.config.training import validate
from sdr1.training import checkpoint
from sdr1.training.checkpoint import folder_of

RUNS, SIZE = 5, 17 * 10**8


def main() -> None:
    folder = Path("outputs/bench/checkpoint-files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = validate({"run": {"directory": str(folder)}})
    weights = np.random.default_rng(0).integers(0, 2**63, SIZE // 8).view(np.uint8)
    state, target = LearnerState(0, (Weights(1, weights, 0),), None, {}), np.zeros_like(weights)

    def plain() -> None:
        with open(folder / "plain", "wb") as file:
            file.write(weights.data)
        sync(folder / "plain")

    def save() -> None:
        checkpoint.save(folder, state, config, {})

    copies = [seconds(lambda: np.copyto(target, weights)) for _ in range(RUNS)]
    before = peak_memory()
    pairs = [(seconds(save), seconds(plain)) for _ in range(RUNS)]
    extra = peak_memory() - before
    reads = [seconds(lambda: checkpoint.load(folder_of(folder) / "000001")) for _ in range(RUNS)]
    memcpy = float(np.median(copies))
    report(
        "checkpoint_1.7GB",
        "seconds to write a checkpoint over a plain write and fsync of the same bytes",
        pairs,
        write_over_memcpy=float(np.median([save for save, _ in pairs])) / memcpy,
        read_over_memcpy=float(np.median(reads)) / memcpy,
        memcpy_seconds=memcpy,
        peak_extra_bytes=extra,
        copies_in_memory=round(extra / SIZE, 2),
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
