"""What every section of a config is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

SANDBOX = "sandbox"
"""The name that stands for the models, prompts and oracle shipped with the package."""

MOST_SEED = 2**63 - 1
MOST_SECONDS = 10_000_000.0
"""Above this a number is a slip of the hand, not a wish."""

Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]


class Section(BaseModel):
    """Frozen, and closed to fields that it does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what they are called now."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Refuse what is no section, and what pydantic would turn into a number, or a file system into an error."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, dict):
            fields = ", ".join(cls.model_fields)
            raise PydanticCustomError(
                "no_section", "is no mapping; give its fields: {fields}", {"fields": fields}
            )
        for name, value in values.items():
            now = cls.RENAMED.get(name)
            problem = _problem(value, cls.model_fields.get(name))
            if now and value is not None:
                problem = f"the key is {now} now"
            if problem is not None:
                raise PydanticCustomError("odd_value", "{problem}", {"name": name, "problem": problem})
        # Configs that runs of earlier versions left name every key.
        return {name: value for name, value in values.items() if name not in cls.RENAMED}


def refuse_set(section: Section, fields: tuple[str, ...], prefix: str, why: str) -> None:
    """Raise ValueError for the first of a section's fields that is not its default: "PREFIXfield: value: why"."""
    for name in fields:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            raise ValueError(f"{prefix}{name}: {value!r} {why} (its default is {default!r})")


def _problem(value: Any, field: FieldInfo | None) -> str | None:
    if isinstance(value, str | PurePath) and "://" not in str(value):
        text = str(value)
        longest = max(len(part.encode("utf-8", "surrogateescape")) for part in text.split("/"))
        if longest > 255 or len(text) > 4000:
            return f"{longest} bytes without a slash; no name has more than 255: shorten it"
        return "holds a NUL character; take it out" if "\0" in text else None
    if field is not None and not _takes(field.annotation, (bool, Any)):
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, bool):
                return "yes, no, true and false are no value here; give a number or a text"
    return None


def _takes(annotation: Any, types: tuple[Any, ...]) -> bool:
    return annotation in types or any(_takes(each, types) for each in get_args(annotation))
