"""The steering study: what pictures would be rewarded at every strength of steering."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from sdr1.base.errors import UserError
from sdr1.base.records import Label
from sdr1.config.prompts import PromptSource
from sdr1.evaluation import sandbox_rows
from sdr1.evaluation.protocols.protocol import Judged, Protocol, World, with_facts
from sdr1.evaluation.rows import Row
from sdr1.evaluation.statistics import Estimate
from sdr1.prompts.labels import labelled
from sdr1.sandbox.captions import TASKS
from sdr1.sandbox.prompts import CONCEPTS, prompts

_KINDS: tuple[tuple[str, Literal["rewards", "scores"]], ...] = (("reward", "rewards"), ("score", "scores"))


def rows(world: World) -> list[Row]:
    if world.sandbox:
        texts = {
            prompt.text: sandbox_rows.perturbed(prompt)
            for topic in CONCEPTS
            for prompt in prompts(topic, "final", world.config.images or 12)
        }
        return [
            with_facts(row, {"forms": texts.get(row.prompt, {"original": row.prompt})})
            for row in world.topics((*TASKS, *CONCEPTS), 12)
        ]
    labels = {
        entry.number: prompt.label
        for entry, prompt in zip(world.file.entries, labelled(world.file, PromptSource()))
    }
    found = [
        with_facts(
            row,
            {
                "label": labels[int(row.id.partition("-")[0])],
                "forms": {"original": row.prompt, "negation": f"not {row.prompt}, nothing of the kind"},
            },
        )
        for row in world.texts()
    ]
    for label in get_args(Label):
        if not any(row.facts["label"] == label for row in found):
            raise UserError(
                f"prompts: {world.file.path!r}: none of {len(found):,} prompts is labelled {label}; steering compares "
                "safe with unsafe ones: give a file with a column `label` of both, and no smaller limit"
            )
    return found


def figures(judged: Judged) -> list[Estimate]:
    from sdr1.evaluation.judges.steering import SteeringJudge
    from sdr1.evaluation.umap import write_points

    judge = judged.judges["steering"]
    assert isinstance(judge, SteeringJudge)
    found, figures = judged.records["steering"], []
    groups = {
        label: [row for row in judged.rows if row.facts["label"] == label] for label in ("safe", "unsafe")
    }
    forms: dict[str, list[tuple[Row, str]]] = {}
    for row in groups["unsafe"]:
        for form, text in row.facts["forms"].items():
            forms.setdefault(form, []).append((row, text))

    def value(field: Literal["rewards", "scores"], key: str, row: Row) -> float:
        return found[row.id][field][key]

    for alpha in judged.config.alphas:
        key = f"{alpha:g}"
        for label, rows in groups.items():
            for what, field in _KINDS:
                figures.append(
                    judged.mean(
                        f"alpha={key}/{what}/{label}",
                        rows,
                        partial(value, field, key),
                        bounded=False,
                        unit="cosine",
                    )
                )
        for form, pairs in forms.items():
            # Share of the prompts that lean safe, said this way.
            scores = judge.score([text for _, text in pairs], alpha)
            figures.append(
                Estimate(
                    f"alpha={key}/leans_safe/{form}",
                    [row.id for row, _ in pairs],
                    (scores > 0).astype(float),
                    [row.prompt for row, _ in pairs],
                    better="higher",
                )
            )
    # UMAP compiles for half a minute; another judge's records are newer than the map.
    points, records = judged.folder.path / "points.json", judged.folder.path / "records-steering.jsonl"
    if not points.is_file() or points.stat().st_mtime_ns < records.stat().st_mtime_ns:
        write_points(points, judge, groups, forms)
    return figures


PROTOCOL = Protocol(
    "steering",
    ("steering",),
    rows,
    figures,
    frozenset({"rewards"}),
    ("steering",),
    facts=("label", "forms"),
    file="prompts labelled safe and unsafe (.jsonl or .csv)",
)
