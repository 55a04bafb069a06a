"""Images/s of the bare pipeline over those of a whole evaluation: drawing, writing, judging, manifest and figures."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import report, seconds
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.run import Place, evaluate
from sdr1.policy import load_pipeline
from sdr1.runtime import prepare_process

IMAGES, BATCH, PAIRS = 24, 16, 5


def main() -> None:
    from sdr1.evaluation.config import EvaluationConfig
    from sdr1.evaluation.protocols import PROTOCOLS, World
    from sdr1.evaluation.rows import batches

    prepare_process(1)
    rows = PROTOCOLS["geneval"].rows(World(EvaluationConfig(images=IMAGES), True, 32))
    painter = Painter(load_pipeline("sandbox"))
    painter.draw(rows[:BATCH])

    def bare() -> None:
        for batch in batches(rows, BATCH):
            painter.draw(batch)

    def start() -> None:
        """What an evaluation costs before its first image: the same with all of them there."""
        evaluate("geneval", "sandbox", out, settings, Place(local=True))

    settings = {"images": IMAGES, "batch_size": BATCH}
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(PAIRS):
            out = Path(folder) / str(number)
            whole = seconds(start)
            pairs.append((whole - seconds(start), seconds(bare)))
    report("evaluation", "an evaluation's seconds, its start taken off, over the bare pipeline's", pairs)


if __name__ == "__main__":
    main()
