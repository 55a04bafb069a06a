"""Configs out of YAML files and KEY=VALUE arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError, reason
from sdr1.base.plain_data import parse_overrides, read_yaml
from sdr1.config.training import Config, validate


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, validate.

    Raises:
        UserError: the file, an override or a value is wrong; the message names field, value and fix.
    """
    from omegaconf import OmegaConf

    changes, path = parse_overrides(overrides), Path(path)
    held = read_yaml(path, "CONFIG")
    try:
        values = OmegaConf.to_container(OmegaConf.merge(held, changes), resolve=True)
    except Exception as error:
        # Interpolations, and overrides of what is no mapping in the file.
        raise UserError(
            f"CONFIG: {path} cannot be read: {reason(error)}; mend the file or the override"
        ) from error
    return validate(values)


def from_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Plain data of KEY=VALUE arguments.

    Raises:
        UserError: an argument is none.
    """
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(parse_overrides(overrides))
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]
