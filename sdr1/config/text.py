"""A config as text for people: YAML with every field's description."""

from __future__ import annotations

import yaml
from pydantic import BaseModel

from sdr1.config.training import Config


def annotated_yaml(config: Config) -> str:
    """YAML that `sdr1.config.files.load` reads back as the same config, with each field's description above it."""
    return "\n".join(_lines(config, indent="")) + "\n"


def _lines(section: BaseModel, indent: str) -> list[str]:
    lines = []
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if field.description:
            lines.append(f"{indent}# {field.description}")
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_inline(values[name])}")
    return lines


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
