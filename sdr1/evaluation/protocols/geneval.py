"""GenEval: whether pictures show what their prompts ask for."""

from __future__ import annotations

from sdr1.evaluation import sandbox_rows
from sdr1.evaluation.judges.verdict import Detection, verdict
from sdr1.evaluation.protocols.protocol import Judged, Protocol, World, with_facts
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.prompts import geneval
from sdr1.sandbox.captions import TASKS

_ORACLE_THRESHOLDS = (0.4, 0.4)


def rows(world: World) -> list[Row]:
    if world.sandbox:
        return [
            with_facts(row, {"metadata": sandbox_rows.metadata(row.facts["claim"])})
            for row in world.topics(TASKS, 100)
        ]
    config, sampler = world.config, world.sampler
    size, count = config.size or world.size, config.images or 4
    return [
        Row(
            f"{number:05d}/samples/{n:05d}",
            asked["prompt"],
            config.seed * 1_000_003 + number * count + n,
            sampler,
            size,
            size,
            {"metadata": asked},
        )
        for number, asked in enumerate(geneval.read(world.file)[: config.limit])
        for n in range(count)
    ]


def figures(judged: Judged) -> list[Estimate]:
    told = judged.saying("correct")

    def right(row: Row) -> bool:
        if told:
            return told[0][row.id]["correct"]
        found = [Detection.of(each) for each in judged.saying("detections")[0][row.id]["detections"]]
        return verdict(found, row.facts["metadata"], thresholds=_ORACLE_THRESHOLDS)

    tags = [row.facts["metadata"]["tag"] for row in judged.rows]
    return [
        judged.mean("overall", judged.rows, right, strata=tags, better="higher"),
        *(
            judged.mean(
                tag, [row for row, other in zip(judged.rows, tags) if other == tag], right, better="higher"
            )
            for tag in dict.fromkeys(tags)
        ),
    ]


PROTOCOL = Protocol(
    "geneval",
    ("geneval",),
    rows,
    figures,
    frozenset({"correct", "detections"}),
    facts=("metadata",),
    file="GenEval's evaluation_metadata.jsonl",
)
