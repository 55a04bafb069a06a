"""A config, or a section of it, as text for people: YAML with every field's description."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from pydantic import BaseModel

from sdr1.base.section import Section


def annotated_yaml(config: Section, sources: Mapping[str, str] | None = None) -> str:
    """YAML that `sdr1.config.files.load` reads back as the same config, with each field's description above it.

    With `sources`, as `sdr1.config.files.load_with_sources` gives them, each value says behind it where it comes from.
    """
    return "\n".join(_lines(config, "", sources)) + "\n"


def _lines(section: BaseModel, prefix: str, sources: Mapping[str, str] | None) -> list[str]:
    lines = []
    indent = "  " * prefix.count(".")
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if field.description:
            lines.append(f"{indent}# {field.description}")
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_lines(value, f"{key}.", sources)]
        else:
            said = "" if sources is None else f"  # {_source(key, sources)}"
            lines.append(f"{indent}{name}: {_inline(values[name])}{said}")
    return lines


def _source(key: str, sources: Mapping[str, str]) -> str:
    # A value such as the terms by name may have parts of several sources.
    found = [source for each, source in sources.items() if each == key or each.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(found)) or "default"


def _inline(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
