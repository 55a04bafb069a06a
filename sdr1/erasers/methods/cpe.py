"""CPE: gated low-rank residuals on keys and values, one set for each of the concept's words, against learnt attacks on them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import one_hot

from sdr1.base.section import Section
from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.patches import fill
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.models import texts


class Constants(Section):
    rank: int = Field(4, ge=1, le=1024, description="Of every residual.")
    alpha: FiniteFloat = Field(1.0, gt=0, le=1e4, description="A residual is alpha / rank times its product.")
    width: int = Field(64, ge=1, le=4096, description="Of the attention among a prompt's tokens.")


class Read(NamedTuple):
    """What C sets read in text states: tokens mixed by attention (C, B, L, D), and their gates in (0, 1), (C, B, L)."""

    mixed: torch.Tensor
    gates: torch.Tensor


class Sets(torch.nn.Module):
    """C sets of residuals for layers of given weights, which begin as nothing. Of each token the set with the largest gate
    speaks. Gates and mixtures are the same for all layers."""

    def __init__(self, weights: Mapping[str, torch.Tensor], count: int, by: Constants) -> None:
        super().__init__()
        self._scale, self._names = by.alpha / by.rank, list(weights)
        depth = next(iter(weights.values())).shape[1]
        self.query = _uniform((count, depth, by.width), depth)
        self.score = _uniform((count, depth), depth)
        self.down = torch.nn.ParameterList(_uniform((count, by.rank, depth), depth) for _ in weights)
        self.up = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(count, len(weight), by.rank)) for weight in weights.values()
        )

    def read(self, states_BLD: torch.Tensor) -> Read:
        query = torch.einsum("bld,cdw->cblw", states_BLD, self.query)
        # Keys are the queries: the code never uses its own key projection.
        weights = (query @ query.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        mixed = weights @ states_BLD
        return Read(mixed, torch.einsum("cbld,cd->cbl", mixed, self.score).sigmoid())

    def added(self, layer: str, read: Read) -> torch.Tensor:
        """The residual of a layer, shape (B, L, E)."""
        place = self._names.index(layer)
        speaks = one_hot(read.gates.argmax(0), len(read.gates)).to(read.gates).movedim(-1, 0)
        low = torch.einsum("cbld,crd->cblr", read.mixed * (read.gates * speaks)[..., None], self.down[place])
        return self._scale * torch.einsum("cblr,cer->ble", low, self.up[place])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Of a patch: `query`, `score`, and for each layer by its name the two factors."""
        factors = zip(self._names, self.down, self.up, strict=True)
        of_layers = {
            f"{name}.{part}": held for name, *both in factors for part, held in zip(("down", "up"), both)
        }
        return {
            name: held.detach()
            for name, held in {"query": self.query, "score": self.score, **of_layers}.items()
        }


def _uniform(shape: tuple[int, ...], inputs: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape).uniform_(-(inputs**-0.5), inputs**-0.5))


class CpePatch(Patch):
    """Residuals on every key and value projection of cross-attention. Tensors: of `Sets`."""

    Settings: ClassVar = Constants

    def install(self, pipeline: Any) -> None:
        found = layers.kv(pipeline.unet)
        weights = {name: layer.weight for name, layer in found.items()}
        self._sets = Sets(weights, len(self.tensors["query"]), self.settings)
        fill(self._sets.tensors(), self.tensors, "cpe")
        self._sets.requires_grad_(False)
        self._seen: tuple[torch.Tensor, Read] | None = None
        for name, layer in found.items():
            layer.register_forward_hook(
                lambda _, args, output, name=name: self._answer(name, args[0], output)
            )

    def _answer(self, name: str, states_BLD: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        # All layers of a call get the same object.
        if self._seen is None or self._seen[0] is not states_BLD:
            self._seen = (states_BLD, self._sets.to(states_BLD).read(states_BLD))
        return output + self._sets.added(name, self._seen[1])


class Batch(NamedTuple):
    """States that are erased, those of their twins, and those that are kept; (N, L, D), (N, L, D), (M, L, D)."""

    erased: torch.Tensor
    twins: torch.Tensor
    kept: torch.Tensor


class Cpe(Constants, Eraser):
    """sum over layers of w |K(t) - [K*(u) + eta (K*(u) - K*(t))]|^2 + w lambda |K(a) - K*(a)|^2, with K(c) = W c + (alpha / r) U D
    [g A c]: t are states of the concept, and those that attacks t + d brought near to K*(t) before, u are its twins', a are kept
    states and mixtures of two. Section 3 of the paper."""

    name = "cpe"
    kind = "adapter"
    changes = "gated residuals on keys and values"
    needs = "texts"
    source = "Concept Pinpoint Eraser (ICLR 2025, arXiv 2506.22806); Hyun1A/CPE"
    patch = CpePatch
    sandbox: ClassVar = {
        "alpha": 4.0,
        "width": 16,
        "keep": 1e3,
        "stages": 4,
        "updates": 300,
        "first_updates": 600,
        "learning_rate": 1e-3,
        "first_rate": 1e-2,
        "attack_updates": 100,
        "bound": 0.5,
        "batch": 16,
        "attacks": 16,
    }

    sets: int = Field(
        1,
        ge=1,
        le=64,
        description="Sets of residuals; the words are dealt out to them in order, a set learns from prompts that name one.",
    )
    eta: FiniteFloat = Field(3.0, ge=0, le=100, description="How far beyond the twin.")
    keep: FiniteFloat = Field(
        1e4, ge=0, le=1e9, description="lambda; 1e5 in the code's configuration, 1e4 in its script."
    )
    mixtures: int = Field(
        16, ge=0, le=4096, description="Kept mixtures of an update, beside the empty prompt."
    )
    noise: FiniteFloat = Field(
        1e-3, ge=0, le=10, description="On mixtures, as a share of each token's length."
    )
    stages: int = Field(20, ge=1, le=10**4, description="Of erasing; an attack is between two of them.")
    updates: int = Field(1200, ge=1, le=10**7, description="Of a stage.")
    first_updates: int = Field(2400, ge=1, le=10**7, description="Of the first stage.")
    learning_rate: FiniteFloat = Field(
        3e-5, gt=0, le=1, description="Of AdamW, which has 8 bits in the code."
    )
    first_rate: FiniteFloat = Field(3e-4, gt=0, le=1, description="Of the first stage.")
    batch: int = Field(
        32, ge=1, le=4096, description="Prompts of an update; the code has 31 templates and the bare word."
    )
    attacks: int = Field(32, ge=0, le=4096, description="Attacks of an update, all of the last stage's.")
    attack_updates: int = Field(1200, ge=0, le=10**7, description="Of a stage's attacks.")
    attack_rate: FiniteFloat = Field(1e-2, gt=0, le=1, description="Of their Adam.")
    bound: FiniteFloat | None = Field(
        None, gt=0, le=100, description="Of an attack on a token, as a share of its length; none in the code."
    )

    def unet_evaluations(self, task: Task) -> int:
        return 0

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch:
        unsafe, neutral = texts.states(pipeline, task.unsafe), texts.states(pipeline, task.neutral)
        kept = texts.states(pipeline, ["", *task.retain])
        random, weights = task.generator(self.name), strengths(pipeline.unet, kept.shape[1])
        trained = [
            self._train(pipeline.unet, weights, Batch(unsafe[group], neutral[group], kept), random).tensors()
            for group in self._groups(task)
        ]
        return self.with_constants({name: torch.cat([each[name] for each in trained]) for name in trained[0]})

    def _groups(self, task: Task) -> list[list[int]]:
        """Unsafe prompts of each set that has any; those that name no word are the first's."""
        count = min(self.sets, len(task.words))
        cuts = [len(task.words) * n // count for n in range(count + 1)]
        named = [task.naming(task.words[begin:end]) for begin, end in pairwise(cuts)]
        others = set(range(len(task.unsafe))).difference(*named)
        return [group for group in ([*named[0], *sorted(others)], *named[1:]) if group]

    def _train(self, unet: Any, weights: dict[str, float], given: Batch, random: torch.Generator) -> Sets:
        found = {name: layer.weight for name, layer in layers.kv(unet).items()}
        sets = Sets(found, 1, self).to(given.erased)
        erased, twins, attacked = given.erased, given.twins, given.erased[:0]
        of_attacked = twins[:0]
        for stage in range(self.stages):
            updates, rate = (
                (self.updates, self.learning_rate) if stage else (self.first_updates, self.first_rate)
            )
            optimizer = torch.optim.AdamW(sets.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
            for _ in range(updates):
                rows = torch.randint(len(erased), (self.batch,), generator=random)
                batch = Batch(
                    torch.cat([erased[rows], attacked]),
                    torch.cat([twins[rows], of_attacked]),
                    self._kept(given.kept, random),
                )
                self.loss(sets, found, weights, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            if self.attacks and stage < self.stages - 1:
                rows = torch.randint(len(erased), (self.attacks,), generator=random)
                attacked = erased[rows] + self.attack(sets, found, weights, erased[rows], random)
                of_attacked = twins[rows]
        return sets

    def _kept(self, kept_MLD: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """The empty prompt and mixtures of the others, which may be the empty prompt where there are none."""
        others = kept_MLD[1:] if len(kept_MLD) > 1 else kept_MLD
        one, other = (
            others[torch.randint(len(others), (self.mixtures,), generator=random)] for _ in range(2)
        )
        # Beta(1, 1) is uniform.
        share = torch.rand((self.mixtures, 1, 1), generator=random).to(kept_MLD)
        mixed = share * one + (1 - share) * other
        noise = torch.randn(mixed.shape, generator=random).to(mixed) / mixed.shape[-1] ** 0.5
        mixed = mixed + self.noise * mixed.norm(dim=-1, keepdim=True) * noise
        return torch.cat([kept_MLD[:1], mixed])

    def loss(
        self, sets: Sets, found: Mapping[str, torch.Tensor], weights: Mapping[str, float], batch: Batch
    ) -> torch.Tensor:
        """The class's formula; squares are means over numbers."""
        count = len(batch.erased)
        read = sets.read(torch.cat([batch.erased, batch.kept]))
        total = torch.zeros((), device=batch.erased.device)
        for name, weight in found.items():
            added = sets.added(name, read)
            beyond = (1 + self.eta) * (batch.erased - batch.twins) @ weight.T
            kept = added[count:].square().mean()
            total = total + weights[name] * ((added[:count] + beyond).square().mean() + self.keep * kept)
        return total

    def attack(
        self,
        sets: Sets,
        found: Mapping[str, torch.Tensor],
        weights: Mapping[str, float],
        states_NLD: torch.Tensor,
        random: torch.Generator,
    ) -> torch.Tensor:
        """d that minimises sum over layers of w |K(t + d) - K*(t)|^2, shape (N, L, D)."""
        sets.requires_grad_(False)
        moved = (1e-3 * torch.randn(states_NLD.shape, generator=random)).to(states_NLD).requires_grad_(True)
        optimizer = torch.optim.Adam([moved], lr=self.attack_rate)
        for _ in range(self.attack_updates):
            read = sets.read(states_NLD + moved)
            errors = [
                weights[name] * (sets.added(name, read) + moved @ weight.T).square().mean()
                for name, weight in found.items()
            ]
            torch.stack(errors).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if self.bound is not None:
                with torch.no_grad():
                    most = self.bound * states_NLD.norm(dim=-1, keepdim=True)
                    moved *= (most / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        sets.requires_grad_(True)
        return moved.detach()


class Cpe4(Cpe):
    """The same with four sets, as for the words nudity, naked, erotic and sexual."""

    name = "cpe-4"
    changes = "four sets of gated residuals on keys and values"

    sets: int = Field(4, ge=1, le=64, description=Cpe.model_fields["sets"].description)


@torch.no_grad()
def strengths(unet: Any, tokens: int) -> dict[str, float]:
    """w of every key and value projection, from largest singular values: of keys s(W_o W_v) s(W_q) / L, of values s(W_o)."""
    found: dict[str, float] = {}
    for name, attention in layers.cross_attentions(unet).items():
        out, value, query = (
            each.weight.double() for each in (attention.to_out[0], attention.to_v, attention.to_q)
        )
        largest = [float(torch.linalg.matrix_norm(each, 2)) for each in (out @ value, query, out)]
        found[f"{name}.to_k"] = largest[0] * largest[1] / tokens
        found[f"{name}.to_v"] = largest[2]
    return found
