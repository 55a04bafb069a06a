"""Several protocols on one model, on one cluster; what two of them draw alike is drawn once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdr1.errors import UserError
from sdr1.evaluation import config as settings
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.run import Pictures, Place, cluster, evaluate
from sdr1.files import write_text
from sdr1.plain_data import read_yaml

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
) -> dict[str, Any]:
    """Evaluate each entry in a folder of its name; returns what is in `suite.json`, which lists them.

    An entry is a `protocol`, a `name` if it is to be another than that, and settings that `values` do not give.

    Raises:
        UserError: an entry is none, or as `evaluate`.
    """
    done: list[dict[str, str]] = []
    pictures: Pictures = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("protocol") not in PROTOCOLS:
            raise UserError(f"suite: {entry!r}: an entry is `protocol: NAME` with settings beside it")
        name = str(entry.get("name", entry["protocol"]))
        if name in (other["name"] for other in done) or Path(name).name != name:
            raise UserError(f"suite: name {name!r}: give every entry a name of its own, without slashes")
        done.append({"name": name, "protocol": entry["protocol"], "directory": name})
    with cluster(place, settings.read(values)):
        for entry, listed in zip(entries, done, strict=True):
            own = {key: value for key, value in entry.items() if key not in ("protocol", "name")}
            print(f"== {listed['name']}", flush=True)
            against = place.against / listed["name"] if place.against is not None else None
            here = replace(place, against=against)
            evaluate(entry["protocol"], model, out / listed["name"], _merged(values, own), here, pictures)
    result = {"model": model, "evaluations": done}
    write_text(out / "suite.json", json.dumps(result, indent=2) + "\n")
    return result


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, `one` before `two`."""
    merged = dict(two)
    for key, value in one.items():
        both = isinstance(value, dict) and isinstance(two.get(key), dict)
        merged[key] = _merged(value, two[key]) if both else value
    return merged
