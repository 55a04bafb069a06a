"""Several protocols on one model, on one cluster; what two of them draw alike is drawn once."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import refuse_foreign, write_text
from sdr1.base.plain_data import read_yaml
from sdr1.config import evaluation as settings
from sdr1.evaluation.folder import SUITE
from sdr1.evaluation.place import Place, cluster
from sdr1.evaluation.plan import load_model, prepare
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.result import Result
from sdr1.evaluation.run import Pictures, evaluate

_NAME = re.compile(r"\w[\w.-]{0,99}")
EVERY_PROTOCOL = [{"protocol": name} for name in PROTOCOLS]


def read(path: Path) -> list[Any]:
    """The entries of a suite's YAML file, as `suite` takes them.

    Raises:
        UserError: it is missing, no YAML, or no list.
    """
    from omegaconf import OmegaConf

    entries = OmegaConf.to_container(read_yaml(path, "--suite"))
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--suite: {str(path)!r}: not a list of {{protocol, settings}}")
    return entries


def suite(
    entries: Sequence[dict[str, Any]], model: str, out: Path, values: dict[str, Any], place: Place
) -> dict[str, Result]:
    """Evaluate each entry in a folder of its name, which `suite.json` lists; returns what was found, by name.

    An entry is a `protocol`, a `name` if it is to be another than that, and settings that `values` do not give.

    Raises:
        UserError: an entry is none, or as `evaluate`.
    """
    done: list[dict[str, str]] = []
    asked: list[tuple[str, Path, dict[str, Any], Place]] = []
    for number, entry in enumerate(entries, 1):
        protocol = entry.get("protocol") if isinstance(entry, dict) else None
        if not isinstance(protocol, str) or protocol not in PROTOCOLS:
            raise UserError(
                f"suite: entry {number}: {reprlib.repr(entry)}: an entry is `protocol: NAME` with settings beside it; NAME "
                f"is one of {', '.join(PROTOCOLS)}"
            )
        name = str(entry.get("name", protocol))
        if name in (other["name"] for other in done) or not _NAME.fullmatch(name):
            raise UserError(
                f"suite: entry {number}: name {reprlib.repr(name)}: give every entry a name of its own, of up to 100 "
                "letters, digits and _ - . (not first)"
            )
        done.append({"name": name, "protocol": protocol, "directory": name})
        own = {key: value for key, value in entry.items() if key not in ("protocol", "name")}
        against = place.against / name if place.against is not None else None
        asked.append((protocol, out / name, _merged(values, own), replace(place, against=against)))
    refuse_foreign(out, SUITE, "suite", "--out")
    drawing = load_model(model, settings.read(values).model)
    for (protocol, folder, settled, here), listed in zip(asked, done, strict=True):
        try:
            prepare(protocol, drawing, folder, settled, here)
        except UserError as error:
            raise UserError(f"{error} (suite: {listed['name']})") from error
    write_text(out / SUITE, json.dumps({"model": model, "evaluations": done}, indent=2) + "\n")
    pictures: Pictures = {}
    results: dict[str, Result] = {}
    with cluster(place, settings.read(values)):
        for (protocol, folder, settled, here), listed in zip(asked, done, strict=True):
            print(f"== {listed['name']}", flush=True)
            results[listed["name"]] = evaluate(protocol, drawing, folder, settled, here, pictures)
    return results


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, `one` before `two`."""
    merged = dict(two)
    for key, value in one.items():
        both = isinstance(value, dict) and isinstance(two.get(key), dict)
        merged[key] = _merged(value, two[key]) if both else value
    return merged
