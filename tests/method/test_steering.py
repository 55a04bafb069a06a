"""The safety direction and the steered embeddings against plain numpy, and their invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from sdr1.method import steering

STEERINGS = (steering.translate, steering.project)
seeds = st.integers(0, 2**31)
# Beyond alpha of about 1 antiparallel vectors may cancel; random ones in 16 dimensions do not come near.
alphas = st.floats(0, 5)


def unit(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def test_safety_direction_points_from_unsafe_mean_to_safe_mean() -> None:
    safe, unsafe = unit(5, 16, seed=1), unit(3, 16, seed=2)
    difference = safe.numpy().mean(axis=0) - unsafe.numpy().mean(axis=0)
    expected = difference / np.sqrt((difference**2).sum())
    np.testing.assert_allclose(steering.safety_direction(safe, unsafe), expected, rtol=1e-12)


def test_safety_direction_without_safe_anchors_points_away_from_the_unsafe_ones() -> None:
    unsafe = unit(3, 16, seed=2)
    away = -unsafe.numpy().mean(axis=0)
    direction = steering.safety_direction(torch.empty(0, 16, dtype=torch.float64), unsafe)
    np.testing.assert_allclose(direction, away / np.linalg.norm(away), rtol=1e-12)


def test_no_direction_is_an_error() -> None:
    anchors = unit(3, 16, seed=1)
    with pytest.raises(ValueError, match="at least one unsafe"):
        steering.safety_direction(anchors, torch.empty(0, 16))
    with pytest.raises(ValueError, match="same mean"):
        steering.safety_direction(anchors, anchors.flip(0))


def test_safety_score_is_the_cosine() -> None:
    text, direction = unit(4, 16, seed=1), unit(16, seed=2)
    expected = torch.nn.functional.cosine_similarity(text, direction.unsqueeze(0))
    torch.testing.assert_close(steering.safety_score(text, direction), expected)


@given(seeds, alphas)
def test_translate_by_numpy(seed: int, alpha: float) -> None:
    text, direction = unit(3, 16, seed=seed), unit(16, seed=seed + 1)
    moved = text.numpy() + alpha * direction.numpy()
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(steering.translate(text, direction, alpha), expected, rtol=1e-9, atol=1e-12)


@given(seeds, alphas)
def test_project_replaces_exactly_the_share_along_the_direction(seed: int, alpha: float) -> None:
    # In the basis (v, rest): the rest keeps its direction, and v's coordinate over the rest's length is alpha / |rest|.
    text, direction = unit(3, 16, seed=seed), unit(16, seed=seed + 1)
    target = steering.project(text, direction, alpha)
    along = target @ direction
    rest = target - along[:, None] * direction
    own_rest = text - (text @ direction)[:, None] * direction
    ratio = along / rest.norm(dim=1)
    torch.testing.assert_close(normalize(rest, dim=1), normalize(own_rest, dim=1))
    torch.testing.assert_close(ratio, alpha / own_rest.norm(dim=1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("steer", STEERINGS)
@given(seed=seeds, alpha=alphas)
def test_steered_targets_have_unit_norm(steer, seed: int, alpha: float) -> None:
    target = steer(unit(3, 16, seed=seed), unit(16, seed=seed + 1), alpha)
    torch.testing.assert_close(target.norm(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("steer", STEERINGS)
@given(seed=seeds, alpha=alphas, more=st.floats(0.01, 2))
def test_more_alpha_is_safer(steer, seed: int, alpha: float, more: float) -> None:
    text, direction = unit(3, 16, seed=seed), unit(16, seed=seed + 1)
    less = steering.safety_score(steer(text, direction, alpha), direction)
    assert (steering.safety_score(steer(text, direction, alpha + more), direction) > less).all()


def test_alpha_zero_leaves_a_translated_prompt_alone_and_makes_a_projected_one_neutral() -> None:
    text, direction = unit(3, 16, seed=1), unit(16, seed=2)
    torch.testing.assert_close(steering.translate(text, direction, 0.0), text)
    neutral = steering.safety_score(steering.project(text, direction, 0.0), direction)
    torch.testing.assert_close(neutral, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
