"""Closed-form edits of linear layers: least squares that stays near the weights there were, in float64."""

from __future__ import annotations

import torch


def solve(
    weight_ED: torch.Tensor,
    keys_ND: torch.Tensor,
    values_NE: torch.Tensor,
    weights_N: torch.Tensor,
    closeness: float,
) -> torch.Tensor:
    """W that minimises  sum_i w_i |W k_i - v_i|^2 + closeness |W - W_0|^2, shape (E, D), float64.

    The normal equations are W (closeness I + sum w k k') = closeness W_0 + sum w v k'.
    """
    weight, keys, values = weight_ED.double(), keys_ND.double(), values_NE.double()
    scaled = keys * weights_N.double()[:, None]
    identity = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    left = closeness * identity + keys.T @ scaled
    right = closeness * weight + values.T @ scaled
    return torch.linalg.solve(left, right.T).T
