"""Seeds of a group's noise: fixed for ever, and different wherever a draw must be different."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdr1.base.records import GroupTask, Prompt

TASK = GroupTask(seed=1, iteration=2, group=3, prompt=Prompt("a red circle", "safe"), version=4)
small = st.integers(0, 500)


def test_noise_seed_never_changes() -> None:
    # Worker-count invariance and resume rest on these numbers; a change makes other pictures of every old run.
    assert TASK.noise_seed("initial", 0) == 9201592904600080713
    assert TASK.noise_seed("steps", 11) == 2810035050941141751


def test_noise_seed_follows_from_place_alone() -> None:
    elsewhere = dataclasses.replace(TASK, prompt=Prompt("a skull", "unsafe"), version=9)
    assert elsewhere.noise_seed("steps", 1) == TASK.noise_seed("steps", 1)


@given(
    st.lists(
        st.tuples(small, small, small, st.sampled_from(["initial", "steps"]), small),
        min_size=2,
        max_size=50,
        unique=True,
    )
)
def test_noise_seeds_of_different_places_differ(places: list[tuple[int, int, int, str, int]]) -> None:
    seeds = {
        dataclasses.replace(TASK, seed=seed, iteration=iteration, group=group).noise_seed(stream, sample)
        for seed, iteration, group, stream, sample in places
    }
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASK.version = 5  # type: ignore[misc]
