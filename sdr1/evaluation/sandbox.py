"""The sandbox's protocol in one process, with nothing written: beside training, and for the recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.crew import Job, Judgement, work
from sdr1.evaluation.folder import Records
from sdr1.evaluation.judges.oracle import OracleJudge
from sdr1.evaluation.painter import Painter
from sdr1.evaluation.rows import Row, batches
from sdr1.sandbox import ORACLE, PIPELINE


def oracle_records(pipeline: Any, rows: Sequence[Row], oracle: Path = ORACLE) -> Records:
    """What the oracle finds in the pipeline's pictures of the rows, drawn in the batches of `sdr1 evaluate`."""
    size = EvaluationConfig().batch_size
    jobs = [Job(n, batch, None, ("oracle",)) for n, batch in enumerate(batches(rows, size))]
    records: Records = {}
    for event in work(jobs, lambda: Painter(pipeline), {"oracle": OracleJudge(oracle)}):
        if isinstance(event, Judgement):
            records.update(zip((row.id for row in event.job.rows), event.records, strict=True))
    return records


def speaks(tokenizer: Any) -> bool:
    """Whether a pipeline's tokenizer knows the sandbox's words, and no others."""
    vocabulary = json.loads((PIPELINE / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    return tokenizer.get_vocab() == vocabulary
