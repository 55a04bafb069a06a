"""Configs out of YAML files, those that they extend, and KEY=VALUE arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError, reason
from sdr1.base.plain_data import flatten, parse_overrides, read_yaml, shown
from sdr1.config.training import Config, validate

_PACKAGED = Path(__file__).parents[1] / "presets"
PRESETS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"
"""The configs that ship with the package; a checkout has them in `configs/`."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or the preset of that name, over those that it extends; apply overrides; validate.

    Raises:
        UserError: a file, an override or a value is wrong; the message names field, value and fix.
    """
    return load_with_sources(path, overrides)[0]


def load_with_sources(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """The same, and by dotted key the name of the file that set it, or `override`; defaults have none.

    Raises:
        UserError: as `load`.
    """
    from omegaconf import OmegaConf

    changes, path = parse_overrides(overrides), _preset_or_file(Path(path))
    layers = [*_layers(path), ("override", changes)]
    try:
        values = OmegaConf.to_container(OmegaConf.merge(*(held for _, held in layers)), resolve=True)
    except Exception as error:
        # Interpolations, and overrides of what is no mapping in the file.
        raise UserError(
            f"CONFIG: {path} cannot be read: {reason(error)}; mend the file or the override"
        ) from error
    config = validate(values)
    sources: dict[str, str] = {}
    for name, held in layers:
        for key in flatten(OmegaConf.to_container(held)):  # type: ignore[arg-type]
            # A value takes the place of a section, and a section that of a value.
            sources = {k: v for k, v in sources.items() if not _within(k, key) and not _within(key, k)}
            sources[key] = name
    return config, sources


def from_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Plain data of KEY=VALUE arguments.

    Raises:
        UserError: an argument is none.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(parse_overrides(overrides))
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def schema() -> dict[str, Any]:
    """The JSON schema of a config file."""
    found = Config.model_json_schema()
    extends = {"type": "string", "description": "File that this one overlays: beside it, or a preset's name."}
    return {**found, "properties": {"extends": extends, **found["properties"]}}


def _layers(path: Path) -> list[tuple[str, Any]]:
    """Name and content of a file and of those that it extends, the last of them first.

    Raises:
        UserError: one is missing, cannot be read, or extends itself.
    """
    from omegaconf import OmegaConf

    layers: list[tuple[str, Any]] = []
    seen: list[Path] = []
    base, field = None, "CONFIG"
    while True:
        held = read_yaml(path, field)
        seen.append(path.resolve())
        if seen[-1] in seen[:-1]:
            chain = " -> ".join(each.name for each in seen)
            raise UserError(f"extends: {shown(base)}: {chain} goes in a circle; name another file")
        values = OmegaConf.to_container(held)
        base = values.pop("extends", None) if isinstance(values, dict) else None
        layers.insert(0, (path.name, OmegaConf.create(values)))
        if base is None:
            return layers
        path, field = _find(base, path), "extends"


def _find(base: Any, file: Path) -> Path:
    """The file that `file` extends: beside it, else a preset."""
    for folder in (file.parent, PRESETS):
        if isinstance(base, str) and os.path.isfile(folder / base):
            return folder / base
    raise UserError(
        f"extends: {shown(base)}: no such file beside {file}, nor a preset; give a path from {file.parent}, or one of "
        f"{_presets()}"
    )


def _preset_or_file(path: Path) -> Path:
    """The file; where there is none, the preset that a name without a folder means."""
    if len(path.parts) == 1 and not path.exists() and (PRESETS / path).is_file():
        return PRESETS / path
    if not path.is_file():
        raise UserError(f"CONFIG: no file {path}; give a YAML file, or one of {_presets()}")
    return path


def _presets() -> str:
    return ", ".join(sorted(each.name for each in PRESETS.glob("*.yaml")))


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
