"""The arithmetic of a run, against counts by hand and against what the learner does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sdr1.config.policy import PolicyConfig
from sdr1.config.training import validate
from sdr1.planning.counts import batch_arithmetic, count


def test_batch_arithmetic_by_hand() -> None:
    # 6 groups x 12 images, 4 of 8 steps trained, guidance: 2 evaluations a step; KL on the 3 safe groups.
    values = {
        "iterations": 50,
        "prompts": {"per_iteration": 6, "unsafe_share": 0.5},
        "rollout": {"group_size": 12},
        "policy": {"steps": 8, "noise_window": [0, 4], "guidance_scale": 2.5},
        "learner": {"groups_per_update": 3, "kl_weight": 1.0, "kl_on": "safe", "micro_batch": 32},
    }
    rows = {name: arithmetic.split()[0] for name, arithmetic in batch_arithmetic(validate(values))}
    assert rows == {
        "groups": "6",
        "images": "72",
        "transitions": "288",
        "updates": "2",
        "learner passes": "12",
        "UNet evaluations, rollout": "1,152",
        "UNet evaluations, reference": "288",
        "UNet evaluations, learner": "576",
        "whole run": "50",
    }
    # 8 steps and 3 timesteps by the weights that drew: the second update of an iteration is another's. Trained unguided.
    forward = {"objective": "forward", "forward": {"timesteps": 3}, "kl_weight": 1.0, "kl_on": "safe"}
    policy = {"steps": 8, "solver": "DDIMScheduler", "guidance_scale": 2.5}
    rows = dict(
        batch_arithmetic(validate(values | {"policy": policy, "learner": {**values["learner"], **forward}}))
    )
    assert {name: arithmetic.split()[0] for name, arithmetic in rows.items() if "UNet" in name} == {
        "UNet evaluations, rollout": "1,368",
        "UNet evaluations, reference": "108",
        "UNet evaluations, learner": "216",
    }
    assert rows["noised latents"].startswith("216 = 72 images x 3 timesteps")
    plain = values | {"policy": values["policy"] | {"guidance_scale": 1}, "learner": {}}
    rows = {name: arithmetic.split()[0] for name, arithmetic in batch_arithmetic(validate(plain))}
    assert (rows["UNet evaluations, rollout"], rows["UNet evaluations, reference"]) == ("576", "0")


def test_evaluations_of_every_solver_are_those_of_its_schedule() -> None:
    from sdr1.evaluation.protocols.schedulers import SCHEDULERS
    from sdr1.models import schedulers
    from sdr1.models.pipeline import load_pipeline

    config = load_pipeline("sandbox").scheduler.config
    for name in SCHEDULERS:
        made = schedulers.make(name, config)
        made.set_timesteps(7)
        assert PolicyConfig(solver=name, steps=7).evaluations == len(made.timesteps), name


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 5))
def test_learner_passes_are_those_that_a_rank_makes(group: int, most: int, ranks: int) -> None:
    from sdr1.training.learner import micro_batches
    from sdr1.training.ranks import Ranks

    values = {
        "policy": {"steps": 4, "noise_window": [0, 3]},
        "rollout": {"group_size": group},
        "learner": {"micro_batch": most, "ranks": ranks},
        "prompts": {"per_iteration": 1},
    }
    config = validate(values)
    made = [micro_batches(3 * group, most, Ranks(rank, ranks)) for rank in range(ranks)]
    assert count(config).passes == max(map(len, made))
    said = dict(batch_arithmetic(config))["learner passes"]
    assert said.startswith(f"{count(config).passes} ")
    assert ("ranks" in said) == (ranks > 1)
