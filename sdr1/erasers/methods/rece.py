"""RECE: UCE, then rounds in which the texts that still call the concept are found and edited away, all in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat

from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.uce import Uce, edit, retained
from sdr1.erasers.protocol import Task
from sdr1.models import texts


class Rece(Uce):
    """A round: c' = (lam_r I + sum W'W)^-1 sum W'W0 c over all keys and values, the state whose values by the edited weights
    come nearest to the concept's by the base's; then UCE of c'. Sections 3.2 and 3.3 of the paper. Its code keeps a round only
    where a detector finds less in validation pictures; here every round is kept."""

    name = "rece"
    kind = "closed form"
    changes = "keys and values of cross-attention"
    source = "RECE (arXiv 2407.12383); CharlesGong12/RECE"
    sandbox: ClassVar = {**Uce.sandbox, "round_closeness": 0.01}

    rounds: int = Field(
        3, ge=0, le=1000, description="After UCE; the code has 3 for nudity, 2 for I2P's words."
    )
    attack_closeness: FiniteFloat = Field(
        0.1, gt=0, le=1e6, description="lam_r: keeps the found states short."
    )
    round_closeness: FiniteFloat = Field(0.1, gt=0, le=1e6, description="lam of a round's edit.")
    round_retain_weight: FiniteFloat = Field(
        0.1,
        ge=0,
        le=1e6,
        description="s_p of a round's edit, unless retain_share is given; s_e is erase_weight.",
    )
    origin: Literal["current", "base"] = Field(
        "current",
        description="Weights that a round's targets and its lam belong to: those before the round, as in the code, so that "
        "rounds add up; or the base's, as the paper writes.",
    )

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        base = {name: layer.weight.detach().clone() for name, layer in layers.kv(pipeline.unet).items()}
        super().erase(pipeline, task, meter)
        # Every prompt begins with the same state, which the paper's code attacks too.
        first = int(self.form == "aligned")
        concept = texts.states(pipeline, task.unsafe)[:, first:].flatten(0, 1)
        targets = texts.states(pipeline, task.neutral)[:, first:].flatten(0, 1)
        kept = retained(pipeline, task, self.form)
        weights = self.weights(len(concept), len(kept))
        if self.retain_share is None:
            weights = self.erase_weight, self.round_retain_weight
        for _ in range(self.rounds):
            found = attack(pipeline.unet, base, concept, self.attack_closeness)
            origin = base if self.origin == "base" else None
            edit(pipeline.unet, found, targets, kept, self.round_closeness, *weights, origin)


@torch.no_grad()
def attack(
    unet: Any, base: Mapping[str, torch.Tensor], states_ND: torch.Tensor, closeness: float
) -> torch.Tensor:
    """The states that minimise  sum over layers |W c' - W0 c|^2 + closeness |c'|^2, shape (N, D), float64."""
    width = states_ND.shape[1]
    left = closeness * torch.eye(width, dtype=torch.float64, device=states_ND.device)
    right = torch.zeros_like(left)
    for name, layer in layers.kv(unet).items():
        weight = layer.weight.double()
        left += weight.T @ weight
        right += weight.T @ base[name].double()
    return torch.linalg.solve(left, right @ states_ND.double().T).T
