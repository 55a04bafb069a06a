"""Another model's evaluation of the same rows, and the paired tests of the two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.plain_data import read_as
from sdr1.evaluation.folder import RESULT, Folder, Records
from sdr1.evaluation.judges import Judge
from sdr1.evaluation.protocols.protocol import Judged, Protocol
from sdr1.evaluation.result import Paired, Result
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate, paired


@dataclass(frozen=True)
class Opponent:
    """Another model's evaluation of the same rows by the same judges."""

    model: str
    rows: list[Row]
    records: dict[str, Records]


def read(path: Path, rows: Sequence[Row], watching: dict[str, Judge]) -> Opponent:
    """The evaluation that `--against` names.

    Raises:
        UserError: it is not finished, or differs in more than the model.
    """
    other = Folder(path)
    result = read_as(Result, path / RESULT, "--against")
    theirs = [line.to_row() for line in other.manifest("--against")]
    if [_drawn(row) for row in theirs] != [_drawn(row) for row in rows]:
        raise UserError(
            f"--against: {path}: was made of other prompts, seeds or samplers; only the model may differ"
        )
    known = {judge.get("judge"): judge for judge in _dicts(result.provenance.get("judges"))}
    for name, judge in watching.items():
        mine, its = json.loads(json.dumps(judge.provenance)), known.get(name, {})
        differing = [key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key)]
        if differing:
            key = min(differing)
            raise UserError(
                f"--against: {path}: judges: {name}: {key} {its.get(key)!r} there and {mine.get(key)!r} here; judge both "
                "with the same settings"
            )
    records = {name: other.records(name, theirs, "--against") for name in watching}
    return Opponent(result.model, theirs, records)


def _drawn(row: Row) -> tuple:
    return row.id, row.prompt, row.seed, row.sampler


def _dicts(found: Any) -> list[dict[str, Any]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def tests(
    opponent: Opponent, protocol: Protocol, judged: Judged, estimates: Sequence[Estimate]
) -> dict[str, Paired]:
    """The test of every figure that is a mean; `difference` is ours minus the opponent's."""
    theirs = replace(judged, rows=opponent.rows, records=opponent.records)
    before = {estimate.name: estimate for estimate in protocol.figures(theirs)}
    return {
        estimate.name: paired(before[estimate.name], estimate)
        for estimate in estimates
        if not estimate.fixed and len(estimate.values) and estimate.name in before
    }
