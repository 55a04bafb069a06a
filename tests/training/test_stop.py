"""Rules that end a run early, on records written by hand and on a run of the sandbox."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sdr1.base.errors import UserError
from sdr1.base.records import LearnerState, Weights
from sdr1.config.files import load
from sdr1.config.training import StopConfig, validate
from sdr1.release.export import export
from sdr1.training import checkpoint
from sdr1.training.run import train
from sdr1.training.run_folder import chosen, unfinished
from sdr1.training.stop import rule_met

KL = {"metric": "kl", "above": 0.5, "iterations": 3}
COLLAPSE = {"metric": "reward_std_unsafe", "below": 1e-3, "iterations": 1}


def met(rules: list[dict[str, Any]], *rows: dict[str, float]) -> str | None:
    rule = rule_met(StopConfig.model_validate({"when": rules}), rows)
    return None if rule is None else str(rule)


def test_a_rule_has_to_hold_so_many_times_in_a_row() -> None:
    values = [0.6, 0.6, 0.4, 0.6, 0.7, 0.8]
    rows = [{"kl": value} for value in values]
    assert [met([KL], *rows[:n]) for n in range(len(rows) + 1)] == [None] * 6 + [
        "kl above 0.5 for 3 in a row"
    ]
    assert met([{**KL, "above": 0.8, "iterations": 1}], *rows) is None, "above, not at"


def test_iterations_without_the_metric_do_not_count_and_do_not_stop() -> None:
    rows = [{"kl": 0.6}, {"loss": 1.0}, {"kl": 0.6}, {"kl": 0.6}]
    assert met([KL], *rows) == "kl above 0.5 for 3 in a row"
    assert met([KL], *rows, {"loss": 1.0}) is None, "it held before, and the run went on"


def test_the_first_rule_that_holds_counts() -> None:
    row = {"kl": 1.0, "reward_std_unsafe": 1e-4}
    assert met([KL, COLLAPSE], row) == "reward_std_unsafe below 0.001 for 1 in a row"
    assert met([COLLAPSE, {**KL, "iterations": 1}], row) == "reward_std_unsafe below 0.001 for 1 in a row"
    assert met([], row) is None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"metric": "kl"}, "give one of `above` and `below`"),
        ({"metric": "kl", "above": 1, "below": 0}, "give one of `above` and `below`"),
        ({"metric": "eval/utility/overall", "below": 0.5}, "set evaluation.every"),
        ({"metric": "kl", "above": float("nan")}, "finite"),
    ],
)
def test_rules_that_can_never_be_meant_are_refused(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=r"stop\.when.*" + said):
        validate({"stop": {"when": [rule]}})


def test_rules_are_given_on_the_command_line() -> None:
    config = load(
        "configs/sandbox.yaml",
        ["stop.when=[{metric: kl, above: 0.1, iterations: 3}, {metric: loss, below: -1}]"],
    )
    assert [str(rule) for rule in config.stop.when] == [
        "kl above 0.1 for 3 in a row",
        "loss below -1 for 1 in a row",
    ]


@pytest.fixture
def stopped(small: Any) -> Any:
    """A run of six iterations that ends after two: every learning rate is above zero."""
    rule = {"metric": "learning_rate", "above": 0.0, "iterations": 2}
    return lambda **sections: small(6, stop={"when": [rule]}, **sections)


def test_a_run_ends_when_a_rule_holds_and_goes_on_when_it_is_taken_away(
    stopped: Any, small: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rare = {"every": 10}
    result = train(stopped(checkpoint=rare), local=True)
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert summary["stopped_by"] == "learning_rate above 0 for 2 in a row"
    assert "stopped after iteration 2 of 6; model/ is of iteration 2" in capsys.readouterr().out
    assert [folder.name for folder in checkpoint.complete(run)] == ["000002"], "the last is kept all the same"
    on = {"directory": str(run), "resume": "auto"}
    again = train(stopped(checkpoint=rare, run=on), local=True)
    assert again.weights_sha256 == result.weights_sha256
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2, "nothing more was trained"
    further = train(small(3, checkpoint=rare, run=on), local=True)
    assert further.weights_sha256 != result.weights_sha256
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert "stopped_by" not in json.loads((run / "summary.json").read_text())


def test_a_stopped_run_leaves_its_best_checkpoint(stopped: Any, tmp_path: Any) -> None:
    # Equal values: the first of them is the best.
    result = train(stopped(checkpoint={"every": 1, "keep": 1, "best": "-staleness"}), local=True)
    run = tmp_path / "run"
    assert [folder.name for folder in checkpoint.complete(run)] == ["000001", "000002"]
    first = checkpoint.load(run / "checkpoints" / "000001").state
    assert result.weights_sha256 == hashlib.sha256(first.current.buffer.data).hexdigest()
    assert json.loads((run / "summary.json").read_text())["weights_of_iteration"] == 1
    assert not unfinished(run), "going on is a wish, not a need"
    (exported,) = export(run, tmp_path / "export", "lora").glob("*.safetensors")
    assert exported.read_bytes() == (run / "model" / "lora" / exported.name).read_bytes()
    assert chosen(run).state.iteration == 1
    # On its way on from there the newest weights are the run's own.
    checkpoint.save(run, LearnerState(0, (Weights(3, first.current.buffer, 0),), None, {}), stopped(), {})
    assert chosen(run).state.iteration == 3
