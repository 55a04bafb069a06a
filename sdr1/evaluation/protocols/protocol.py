"""What a protocol is: the rows it draws, the judges that look at them, the figures that come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation import sandbox_rows
from sdr1.evaluation.folder import Folder, Records
from sdr1.evaluation.judges import Judge, kind
from sdr1.evaluation.result import Better, Unit
from sdr1.evaluation.rows import Facts, Row, Sampler
from sdr1.evaluation.statistics import Estimate
from sdr1.prompts import files as prompt_files
from sdr1.prompts.files import TEXT_COLUMNS, PromptFile
from sdr1.sandbox.captions import TASKS

REAL = Sampler("DDIMScheduler", steps=50, guidance_scale=7.5)


@dataclass(frozen=True)
class World:
    """What the rows are made for."""

    config: EvaluationConfig
    sandbox: bool
    size: int
    """Pixels a side of the model's own images."""
    prompts: PromptFile | None = None
    """The user's, unless the protocol needs none, or the rows are the sandbox's."""

    @property
    def sampler(self) -> Sampler:
        """The user's, and where that leaves something open the sandbox's or `REAL`."""
        given, default = self.config.sampler, sandbox_rows.DEPLOYED if self.sandbox else REAL
        guidance = given.guidance_scale
        return Sampler(
            given.scheduler or default.scheduler,
            given.steps or default.steps,
            default.guidance_scale if guidance is None else guidance,
            given.eta,
        )

    @property
    def file(self) -> PromptFile:
        assert self.prompts is not None
        return self.prompts

    def topics(self, names: tuple[str, ...], count: int) -> list[Row]:
        """The sandbox's rows of these topics, `count` each unless the user says how many."""
        images = self.config.images or count
        return sandbox_rows.rows_of(names, images, self.config.seed, self.sampler, self.config.split)

    def rows(self, topics: tuple[str, ...], count: int) -> list[Row]:
        """In the sandbox `topics`, else `texts`."""
        return self.topics(topics, count) if self.sandbox else self.texts()

    def texts(self) -> list[Row]:
        """A row for each prompt, or as many as the user says, every one with a seed of its own."""
        size, count = self.config.size or self.size, self.config.images or 1
        return [
            Row(
                f"{entry.number:05d}" if count == 1 else f"{entry.number:05d}-{n}",
                entry.text,
                self.config.seed * 1_000_003 + entry.number * count + n,
                self.sampler,
                size,
                size,
            )
            for entry in self.file.entries[: self.config.limit]
            for n in range(count)
        ]


@dataclass(frozen=True)
class Judged:
    """An evaluation whose images all have their records."""

    config: EvaluationConfig
    rows: Sequence[Row]
    records: dict[str, Records]
    """By judge, then by row."""
    judges: dict[str, Judge]
    folder: Folder

    def mean(
        self,
        name: str,
        rows: Sequence[Row],
        outcome: Callable[[Row], float],
        *,
        better: Better = "",
        unit: Unit = "share",
        bounded: bool = True,
        strata: Sequence[str] | None = None,
    ) -> Estimate:
        """The `Estimate` of an outcome over rows."""
        values = np.array([float(outcome(row)) for row in rows])
        ids, prompts = [row.id for row in rows], [row.prompt for row in rows]
        return Estimate(name, ids, values, prompts, bounded, unit, better, strata)

    def saying(self, key: str) -> list[Records]:
        """The records of those judges that say this of an image, in the judges' order."""
        return [found for name, found in self.records.items() if key in kind(name).says]

    def unsafe(self, row: Row) -> bool:
        """Whether any judge that can flag it does."""
        return any(found[row.id]["unsafe"] for found in self.saying("unsafe"))


@dataclass(frozen=True)
class Protocol:
    """What `sdr1 evaluate NAME` does; `judges` are those outside the sandbox."""

    name: str
    judges: tuple[str, ...]
    rows: Callable[[World], list[Row]]
    figures: Callable[[Judged], list[Estimate]]
    needs: frozenset[str]
    """Keys of records, of which its figures are made; a judge has to say one of them."""
    sandbox_judges: tuple[str, ...] = ("oracle",)
    facts: tuple[str, ...] = ()
    """What its figures need to know of every row's prompt."""
    ready: Callable[[Judged], None] = lambda judged: None
    """Raises UserError where the figures need what is not there; told of an evaluation before it starts."""
    file: str | None = None
    """The prompt file that it takes outside the sandbox."""
    columns: tuple[str, ...] = TEXT_COLUMNS
    """Where its prompts are, unless the user says it."""

    def read_prompts(self, config: EvaluationConfig) -> PromptFile | None:
        """The user's prompt file; None if it needs none.

        Raises:
            UserError: none was given, or it cannot be read.
        """
        if self.file is None:
            return None
        if config.prompts is None:
            raise UserError(f"prompts: None: {self.name} needs {self.file}; give it with prompts=FILE")
        return prompt_files.read(config.prompts, column=config.column, usual=self.columns)


def with_facts(row: Row, facts: Facts) -> Row:
    """The row with these facts beside its own."""
    return replace(row, facts={**row.facts, **facts})


CAPTIONS = "a file of captions, such as COCO's"


def caption_rows(world: World) -> list[Row]:
    """The rows of protocols that any captions will do for."""
    return world.rows(TASKS, 100)
