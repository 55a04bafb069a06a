"""A judge of the user's own, by import path."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdr1.base import factories
from sdr1.base.errors import UserError, reason
from sdr1.base.files import file_sha256
from sdr1.base.plain_data import shown
from sdr1.evaluation.rows import Record, Row

SAYS: dict[str, type] = {"unsafe": bool, "correct": bool, "cosine": float}
"""What such a judge can say of an image."""


def says(path: str) -> frozenset[str]:
    """What the judge that `path` names declares to say: the attribute `says` of its factory. Nothing is built.

    Raises:
        UserError: it cannot be imported, declares nothing that a figure is made of, or cannot be called with `device`.
    """
    factory = factories.imported(path, _where(path))
    declared = getattr(factory, "says", None)
    several = isinstance(declared, set | frozenset | tuple | list)
    if not several or not declared or any(each not in tuple(SAYS) for each in declared):
        raise UserError(
            f"{_where(path)}: says {shown(declared)}; give it an attribute `says`, a set of some of {', '.join(SAYS)}"
        )
    factories.check_call(factory, lambda error: _failed(path, error), device="cpu")
    return frozenset(declared)


class OwnJudge:
    """Looks at what the user's judge says before it is believed."""

    def __init__(self, path: str, device: str) -> None:
        self._path, self._says = path, says(path)
        factory = factories.imported(path, _where(path))
        self._judge = factories.call(factory, lambda error: _failed(path, error), device=device)
        if not callable(getattr(self._judge, "judge", None)):
            raise UserError(
                f"{_where(path)}: returned {type(self._judge).__name__} without a method judge(images, rows); give it one"
            )
        own = getattr(self._judge, "provenance", {})
        try:
            own = dict(own)
            json.dumps(own, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{_where(path)}: provenance: {reason(error)}; use a dict of plain data"
            ) from error
        file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
        digest = file_sha256(Path(file)) if file and Path(file).is_file() else None
        self.provenance = {"threshold": None, **own, "judge": path, "sha256": digest}

    def judge(self, images_NHWC: np.ndarray, rows: Sequence[Row]) -> list[Record]:
        try:
            found = list(self._judge.judge(images_NHWC, rows))
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{_where(self._path)}: row {rows[0].id}: judge(images, rows) raised {type(error).__name__}: "
                f"{reason(error)}; mend the judge"
            ) from error
        if len(found) != len(rows):
            raise UserError(
                f"{_where(self._path)}: row {rows[0].id}: {len(found)} records of {len(rows)} images; return one an image"
            )
        return [self._checked(record, row) for record, row in zip(found, rows, strict=True)]

    def _checked(self, record: Any, row: Row) -> Record:
        kept: dict[str, Any] = {}
        for key in sorted(self._says):
            value = record.get(key) if isinstance(record, dict) else None
            value = value.item() if isinstance(value, np.generic) else value
            wanted = SAYS[key]
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not (number if wanted is float else isinstance(value, bool)):
                raise UserError(
                    f"{_where(self._path)}: row {row.id}: {key} {shown(value)}: give a {wanted.__name__} for `{key}`, "
                    "as the judge declares"
                )
            kept[key] = value
        return cast(Record, kept)


def _where(path: str) -> str:
    return f"judges: {path!r}"


def _failed(path: str, error: BaseException) -> UserError:
    return UserError(
        f"{_where(path)}: raised {type(error).__name__}: {reason(error)}; the factory is called as factory(device=...)"
    )
