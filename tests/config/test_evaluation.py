"""What an evaluation may be told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sdr1.base.errors import UserError
from sdr1.cli import options
from sdr1.config import evaluation
from sdr1.config.training import Config


def unbounded(schema: Any, place: str = "") -> Iterator[str]:
    """Where a JSON schema takes any number, however large."""
    if isinstance(schema, list):
        for part in schema:
            yield from unbounded(part, place)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not (
            {"minimum", "exclusiveMinimum"} & set(schema) and {"maximum", "exclusiveMaximum"} & set(schema)
        ):
            yield place
        for key, part in schema.items():
            yield from unbounded(part, f"{place}.{key}")


def test_every_number_has_bounds():
    assert not list(unbounded(evaluation.EvaluationConfig.model_json_schema()))
    # The first two are bounded by the config's other fields; a metric may have any value.
    assert {place.split(".")[4] for place in unbounded(Config.model_json_schema())} == {
        "groups_per_update",
        "noise_window",
        "above",
        "below",
    }


def test_a_seed_within_its_bound_is_one_of_every_row():
    from sdr1.evaluation.sandbox_rows import rows_of
    from sdr1.sandbox.captions import TASKS

    assert options.MOST_ROW_SEED == evaluation.MOST_ROW_SEED
    assert max(row.seed for row in rows_of(TASKS, 10, evaluation.MOST_ROW_SEED)) < 2**63
    with pytest.raises(UserError, match=r"seed: 9000000000001: .*less than or equal"):
        evaluation.read({"seed": evaluation.MOST_ROW_SEED + 1})
