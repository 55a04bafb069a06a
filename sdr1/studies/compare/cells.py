"""What a comparison is asked for: methods, seeds and budgets of a YAML file, and the cells that follow from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from sdr1.base.checked import checked
from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256
from sdr1.base.plain_data import flatten, read_yaml, shown
from sdr1.base.section import SANDBOX, Section
from sdr1.config.evaluation import MOST_ROW_SEED
from sdr1.config.files import PRESETS, from_overrides, load
from sdr1.config.training import Config
from sdr1.erasers import tasks
from sdr1.erasers.methods import METHODS
from sdr1.erasers.run import SANDBOX_BUDGET, settings_of
from sdr1.planning.counts import count
from sdr1.sandbox import WEIGHTS
from sdr1.sandbox.prompts import Split
from sdr1.studies.compare import code
from sdr1.training.differences import Difference

DEFAULT = PRESETS / "studies" / "compare.yaml"
JUDGES = ("oracle", "clip", "fid")
BASE = "base"
"""The model that all methods start from, judged as they are."""
_JUDGING = (
    "sdr1.evaluation.protocols.sandbox",
    "sdr1.evaluation.painter",
    *(f"sdr1.evaluation.judges.{judge}" for judge in JUDGES),
)
_TRAINING = ("sdr1.training.local", "sdr1.training.loop", "sdr1.prompts.stream")


Seed = Annotated[int, Field(ge=0, le=MOST_ROW_SEED)]
Budget = Annotated[int, Field(ge=1, le=10**12)]


def _once(field: str, given: Sequence[Any]) -> None:
    twice = next((each for each in given if list(given).count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{field}: {twice!r}: given twice; give each once")


class Method(Section):
    """A row of the table: a method of the field, or a training of this package."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="Its name in the table.")
    erase: str | None = Field(None, description="A method of `sdr1 erase list`.")
    train: str | None = Field(None, description="A training config, or a preset's name.")
    overrides: tuple[str, ...] = Field((), description="KEY=VALUE of that method or config.")
    tries: tuple[tuple[str, ...], ...] = Field(
        (),
        description="Overrides of each try of tuning, behind those above; an empty list is the method as it is.",
    )
    budget: Budget | None = Field(None, description="In place of the comparison's.")

    @model_validator(mode="after")
    def _one_way(self) -> Method:
        if (self.erase is None) == (self.train is None):
            raise ValueError(f"name: {self.name!r}: needs one of erase and train")
        if self.name == BASE:
            raise ValueError(f"name: {self.name!r}: is the untrained model's, always there; choose another")
        return self


class Sizes(Section):
    """How much a comparison draws and trains."""

    seeds: tuple[Seed, ...] = Field((101, 102, 103), min_length=1, description="Of training and of pictures.")
    budget: Budget = Field(
        SANDBOX_BUDGET, description="UNet evaluations of a training, a backward pass as two."
    )
    images: int = Field(100, ge=1, le=100_000, description="Pictures of a topic that a model is judged by.")

    @model_validator(mode="after")
    def _seeds_once(self) -> Sizes:
        _once("seeds", self.seeds)
        return self


class Tuning(Sizes):
    """The same of the tries, in which methods are tuned before they are compared."""

    seeds: tuple[Seed, ...] = Field((201,), min_length=1, description=Sizes.model_fields["seeds"].description)
    images: int = Field(20, ge=1, le=100_000, description=Sizes.model_fields["images"].description)


class Comparison(Sizes):
    split: Split = Field("final", description="Of the prompts that models are judged by.")
    reference: str = Field("r1", description="The method that the others are tested against.")
    methods: tuple[Method, ...] = Field((), description="A list of {name, erase or train, overrides}.")
    every_eraser: bool = Field(False, description="Add every method of `sdr1 erase list` that is not named.")
    tuning: Tuning = Tuning()
    tuned: str | None = Field(
        None,
        description="Log of the tries, beside this file; methods get the settings that were chosen there.",
    )

    @model_validator(mode="after")
    def _named_once(self) -> Comparison:
        _once("methods", [each.name for each in self.methods])
        if len(counts := {len(each.tries) for each in self.methods} - {0}) > 1:
            raise ValueError(f"methods: {sorted(counts)} tries; give each method as many as the others")
        if self.reference not in (names := [each.name for each in self.entries()]):
            raise ValueError(
                f"reference: {self.reference!r}: no such method here; use one of {', '.join(names) or 'none'}"
            )
        return self

    def entries(self) -> list[Method]:
        """The methods in the table's order."""
        named = {each.erase for each in self.methods} | {each.name for each in self.methods}
        more = [Method(name=name, erase=name) for name in METHODS if name not in named]
        return [*self.methods, *(more if self.every_eraser else [])]


@dataclass(frozen=True)
class Cell:
    """A method with one seed and one budget: what is trained and judged for itself."""

    label: str
    """Its method's name in the table."""
    seed: int
    images: int
    split: Split
    budget: int | None
    """None of the base."""
    erase: str | None
    train: Config | None
    settings: dict[str, Any]
    """Of an eraser, all of its constants."""
    wanted: int
    """UNet evaluations that the method takes where the budget does not bind."""
    versions: dict[str, str]
    """Digests of the code and of the weights that the result follows from."""
    device: str

    @property
    def planned(self) -> int:
        """UNet evaluations that it will take: what is wanted, as far as the budget goes."""
        if self.train is not None:
            return count(self.train).total * self.train.iterations
        return min(self.wanted, self.budget or 0)

    @property
    def key(self) -> str:
        """Digest of everything that matters to the cell's result, and the name of its folder."""
        config = {} if self.train is None else flatten(self.train.model_dump(mode="json"))
        told = {
            "seed": self.seed,
            "images": self.images,
            "split": self.split,
            "budget": self.budget,
            "erase": self.erase,
            "settings": self.settings,
            "device": self.device,
            "train": {
                field: value
                for field, value in config.items()
                if Difference(field, None, None).matters and field not in ("run.directory", "run.resume")
            },
            "versions": self.versions,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:20]


def read(path: Path | None) -> Comparison:
    """A comparison's file, or that of the package.

    Raises:
        UserError: it is missing, no YAML, or a value in it is wrong.
    """
    from omegaconf import OmegaConf

    file = path or DEFAULT
    values = OmegaConf.to_container(read_yaml(file, "FILE"))
    if not isinstance(values, dict):
        raise UserError(f"FILE: {file}: {shown(values)}: is no mapping; begin with seeds: and methods:")
    try:
        return checked(Comparison, values)
    except UserError as error:
        raise UserError(f"FILE: {file}: {error}") from error


def cells(comparison: Comparison, device: str = "cpu") -> list[Cell]:
    """Every cell, the base's first, method by method; all of them are made on one device.

    Raises:
        UserError: a method's name, a constant or a config is wrong, or a budget does not reach for one iteration.
    """
    made = [_base(comparison, seed, device) for seed in comparison.seeds]
    for method in comparison.entries():
        budget = method.budget or comparison.budget
        for seed in comparison.seeds:
            try:
                cell = _trained if method.erase is None else _erased
                made.append(cell(comparison, method, seed, budget, device))
            except UserError as error:
                raise UserError(f"methods: {method.name}: {error}") from error
    return made


def _base(asked: Comparison, seed: int, device: str) -> Cell:
    return Cell(BASE, seed, asked.images, asked.split, None, None, None, {}, 0, _versions(), device)


def _erased(asked: Comparison, method: Method, seed: int, budget: int, device: str) -> Cell:
    name = method.erase
    if name not in METHODS:
        raise UserError(f"erase: {name!r}: no such method; use one of {', '.join(METHODS)}")
    eraser = settings_of(METHODS[name], True, from_overrides(method.overrides))
    versions = _versions("sdr1.erasers.tasks", METHODS[name].__module__)
    settings = eraser.model_dump(mode="json")
    wanted = eraser.unet_evaluations(tasks.of_sandbox(seed))
    return Cell(
        method.name, seed, asked.images, asked.split, budget, name, None, settings, wanted, versions, device
    )


def _trained(asked: Comparison, method: Method, seed: int, budget: int, device: str) -> Cell:
    assert method.train is not None
    if own := next((each for each in method.overrides if each.startswith("seed=")), None):
        raise UserError(
            f"overrides: {own!r}: seeds are the comparison's; name them in seeds, and leave it out"
        )
    places = [f"{section}.device={device}" for section in ("learner", "rollout", "reward")]
    config = load(method.train, [*method.overrides, f"seed={seed}", "tracking.enabled=false", *places])
    if config.policy.model != SANDBOX:
        raise UserError(
            f"policy.model: {config.policy.model!r}: all methods start from one base; use {SANDBOX}"
        )
    if config.run.storage is not None:
        raise UserError(
            f"run.storage: {config.run.storage}: a copy is of one run, and each seed is one; leave it out"
        )
    each = count(config).total
    if budget < each:
        raise UserError(f"budget: {budget:,}: one iteration takes {each:,} UNet evaluations; give more")
    iterations = min(config.iterations, budget // each)
    cut = config.model_copy(update={"iterations": iterations})
    wanted, versions = each * config.iterations, _versions(*_TRAINING)
    return Cell(method.name, seed, asked.images, asked.split, budget, None, cut, {}, wanted, versions, device)


@cache
def _versions(*modules: str) -> dict[str, str]:
    files = sorted(path for path in WEIGHTS.rglob("*") if path.is_file())
    weights = json.dumps([(str(path.relative_to(WEIGHTS)), file_sha256(path)) for path in files])
    return {
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
        "judging": code.digest(_JUDGING),
        "method": code.digest(modules) if modules else "",
    }
