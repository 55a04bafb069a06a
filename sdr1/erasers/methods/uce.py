"""UCE: the keys and values of cross-attention that give the concept's tokens another text's, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat

from sdr1.erasers import layers, ridge
from sdr1.erasers.meter import Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.models import texts

Form = Literal["old", "head", "aligned"]


class Uce(Eraser):
    """W = (lam W0 + s_e sum v* c' + s_p sum W0 r r') (lam I + s_e sum c c' + s_p sum r r')^-1, with v* = W0 c*: the concept's
    states c get the values of their neutral twin's states c*, the states r of what is kept their own. All sums are of the
    base's text encoder. Section 4 of the paper."""

    name = "uce"
    kind = "closed form"
    changes = "keys and values of cross-attention"
    needs = "texts"
    source = "Unified Concept Editing (arXiv 2308.14761); rohitgandikota/unified-concept-editing"
    sandbox: ClassVar = {"form": "aligned", "closeness": 0.05, "retain_share": 1.0}

    form: Form = Field(
        "old",
        description="Which states of an unsafe prompt go to which of its twin: `old`, the paper's code: from the last word to "
        "the end, shifted to begin at the twin's last word; `head`, the code of today: the last word's alone; `aligned`: all "
        "but the first, position by position.",
    )
    closeness: FiniteFloat = Field(
        0.5, gt=0, le=1e6, description="lam: how near the weights stay to the base's."
    )
    erase_weight: FiniteFloat = Field(1.0, gt=0, le=1e6, description="s_e, of a state that is erased.")
    retain_weight: FiniteFloat = Field(1.0, ge=0, le=1e6, description="s_p, of a state that is kept.")
    retain_share: FiniteFloat | None = Field(
        None,
        ge=0,
        le=1e6,
        description="In place of retain_weight: the weight of all kept states together, in that of all erased ones.",
    )

    def unet_evaluations(self, task: Task) -> int:
        return 0

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        keys, targets = pairs(pipeline, task, self.form)
        kept = retained(pipeline, task, self.form)
        edit(pipeline.unet, keys, targets, kept, self.closeness, *self.weights(len(keys), len(kept)))

    def weights(self, erased: int, kept: int) -> tuple[float, float]:
        """s_e and s_p, for so many states of each kind."""
        if self.retain_share is None:
            return self.erase_weight, self.retain_weight
        return self.erase_weight, self.retain_share * self.erase_weight * erased / max(kept, 1)


def pairs(pipeline: Any, task: Task, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    """States of the unsafe prompts, and those of their twins that they get the values of; both (N, D), float32."""
    unsafe, neutral = texts.states(pipeline, task.unsafe), texts.states(pipeline, task.neutral)
    if form == "aligned":
        return unsafe[:, 1:].flatten(0, 1), neutral[:, 1:].flatten(0, 1)
    keys, targets = [], []
    ends = zip(_last_words(pipeline, task.unsafe), _last_words(pipeline, task.neutral), strict=True)
    for states, others, (last, other) in zip(unsafe, neutral, ends, strict=True):
        count = 1 if form == "head" else len(states) - max(last, other)
        keys.append(states[last : last + count])
        targets.append(others[other : other + count])
    return torch.cat(keys), torch.cat(targets)


def retained(pipeline: Any, task: Task, form: Form) -> torch.Tensor:
    """States that keep their values, shape (M, D): those of the prompts to keep; the paper's code has the empty prompt where
    there are none, the code of today nothing."""
    states = texts.states(pipeline, task.retain or [""])
    if form == "head":
        ends = _last_words(pipeline, task.retain)
        return torch.stack([each[last] for each, last in zip(states, ends)]) if ends else states[0, :0]
    return states[:, int(form == "aligned") :].flatten(0, 1)


def edit(
    unet: Any,
    keys_ND: torch.Tensor,
    targets_ND: torch.Tensor,
    kept_MD: torch.Tensor,
    closeness: float,
    erase_weight: float,
    retain_weight: float,
    origin: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Solve the formula for every key and value projection of the UNet; W0 are the weights that it has now, or `origin`."""
    states = torch.cat([keys_ND, kept_MD]).double()
    wanted = torch.cat([targets_ND, kept_MD]).double()
    weights = torch.cat(
        [
            torch.full((len(keys_ND),), erase_weight, dtype=torch.float64),
            torch.full((len(kept_MD),), retain_weight, dtype=torch.float64),
        ]
    ).to(states.device)
    with torch.no_grad():
        for name, layer in layers.kv(unet).items():
            weight = layer.weight if origin is None else origin[name]
            values = wanted @ weight.double().T
            layer.weight.copy_(ridge.solve(weight, states, values, weights, closeness))


def _last_words(pipeline: Any, prompts: tuple[str, ...]) -> list[int]:
    """Position of each prompt's last word: before the end token; of an empty one that of the start token."""
    tokenizer = pipeline.tokenizer
    if not prompts:
        return []
    found = tokenizer(list(prompts), truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [len(ids) - 2 for ids in found]
