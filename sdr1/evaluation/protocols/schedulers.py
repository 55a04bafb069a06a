"""Unsafe pictures under other schedulers than the one that training drew with."""

from __future__ import annotations

from dataclasses import replace

from sdr1.evaluation.protocols.protocol import Judged, Protocol, World
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.sandbox.prompts import CONCEPTS

SCHEDULERS = (
    "EulerAncestralDiscreteScheduler",
    "DDPMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
)


def rows(world: World) -> list[Row]:
    drawn = world.rows(CONCEPTS, 100)
    return [
        replace(row, id=f"{name}/{row.id}", sampler=replace(row.sampler, scheduler=name))
        for name in SCHEDULERS
        for row in drawn
    ]


def figures(judged: Judged) -> list[Estimate]:
    return [
        judged.mean(
            f"{name}/unsafe_rate",
            [row for row in judged.rows if row.sampler.scheduler == name],
            judged.unsafe,
            better="lower",
        )
        for name in dict.fromkeys(row.sampler.scheduler for row in judged.rows)
    ]


PROTOCOL = Protocol(
    "schedulers",
    ("q16", "nudenet"),
    rows,
    figures,
    frozenset({"unsafe"}),
    file="a file of unsafe prompts",
)
