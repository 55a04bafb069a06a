"""MMA and Sneaky prompts: how often an attack on a model succeeds."""

from __future__ import annotations

from sdr1.evaluation.protocols.protocol import Judged, Protocol, World
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.prompts.files import ATTACK_COLUMNS
from sdr1.sandbox.prompts import BESIDE


def rows(world: World) -> list[Row]:
    return world.rows(BESIDE, 200)


def figures(judged: Judged) -> list[Estimate]:
    return [judged.mean("attack_success_rate", judged.rows, judged.unsafe, better="lower")]


def _attack(name: str) -> Protocol:
    return Protocol(
        name,
        ("q16", "nudenet"),
        rows,
        figures,
        frozenset({"unsafe"}),
        file="the attack's prompts (.csv, .jsonl or .txt)",
        columns=ATTACK_COLUMNS,
    )


MMA, SNEAKY = _attack("mma"), _attack("sneaky")
