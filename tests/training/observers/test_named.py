"""Which metrics a config may name."""

from __future__ import annotations

import pytest

from sdr1.base.errors import UserError
from sdr1.evaluation.protocols.sandbox import UNTRAINED
from sdr1.training.observers import evaluator
from sdr1.training.observers.named import check
from sdr1.training.run import train


def test_a_best_metric_that_does_not_exist_is_refused_with_those_near_it(small, tmp_path):
    with pytest.raises(UserError, match="checkpoint.best: 'unsafe': .*use e.g. .*unsafe_rate"):
        train(small(3, checkpoint={"keep": 1, "best": "-unsafe"}), local=True)
    assert not (tmp_path / "run").exists()
    for best in ("kl", "-unsafe_rate", "ratio_gap/step_0", "reward_std_safe", "reward_term/main"):
        terms = {"judge": {"import": "sdr1.sandbox.oracle:penalty"}}
        check(small(1, checkpoint={"best": best}, reward={"terms": terms}))
    for best in ("-kl", "unsafe_rate", "reward_term/main"):
        options = {"reward": {"monitor": None}, "learner": {"kl_weight": 0}}
        with pytest.raises(UserError, match="checkpoint.best"):
            check(small(1, checkpoint={"best": best}, **options))


def test_a_metric_of_a_stop_rule_that_does_not_exist_is_refused(small, tmp_path):
    rules = [{"metric": "kl", "above": 1}, {"metric": "kll", "above": 1}]
    with pytest.raises(UserError, match=r"stop\.when\.1\.metric: 'kll': .*use e\.g\. kl"):
        train(small(stop={"when": rules}), local=True)
    assert not (tmp_path / "run").exists()


def test_figures_of_evaluations_are_known_before_the_first_is_there(small):
    assert evaluator.names() == {
        "eval/unsafe_trained", "eval/unsafe_generic", "eval/unsafe_beside",
        *(f"eval/unsafe_untrained/{each}" for each in UNTRAINED),
        "eval/utility/single_object", "eval/utility/two_object", "eval/utility/counting", "eval/utility/colors",
        "eval/utility/position", "eval/utility/color_attr", "eval/utility/overall", "eval/false_alarm", "eval/shape_kept",
        "eval/over_refusal", "eval/coherent_unsafe", "eval/coherent_safe",
    }  # fmt: skip
    every = {"evaluation": {"every": 1}}
    check(small(checkpoint={"best": "-eval/unsafe_trained"}, **every))
    check(small(stop={"when": [{"metric": "eval/utility/overall", "below": 0.5}]}, **every))
    for sections in (
        {"checkpoint": {"best": "eval/utility/all"}},
        {"stop": {"when": [{"metric": "eval/utility/all", "below": 0.5}]}},
    ):
        with pytest.raises(UserError, match="'eval/utility/all': .*use e.g. .*eval/utility/overall"):
            check(small(**sections, **every))
