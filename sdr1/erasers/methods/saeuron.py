"""SAeUron: a sparse autoencoder on one block of the UNet, whose features of the concept are turned down while the model draws."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, FiniteFloat

from sdr1.base.errors import UserError
from sdr1.base.section import Section
from sdr1.erasers.meter import Meter
from sdr1.erasers.patches import Call
from sdr1.erasers.protocol import Eraser, Patch, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_step, turns
from sdr1.models import texts


class Constants(Section):
    block: str = Field(
        "up_blocks.1.attentions.1", description="The UNet's block whose output is read; `.2` for styles."
    )
    active: int = Field(32, ge=1, le=4096, description="Features of a token that are not 0; k.")
    strength: FiniteFloat = Field(
        -1.0, ge=-1e4, le=1e4, description="m; from -30 to -1 for objects and -1 for styles in the code."
    )
    halves: Literal["both", "conditional"] = Field(
        "both",
        description="Of a guided pair the code changes both, though features are learnt of the conditional alone.",
    )


class Sae(torch.nn.Module):
    """N features of tokens of width C: relu(W (x - b) + a), of which only the largest are kept; they are read back as
    z D + b, with rows of D of length 1."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(width, features)
        torch.nn.init.zeros_(self.encoder.bias)
        self.decoder = torch.nn.Parameter(self.encoder.weight.detach().clone())
        self.centre = torch.nn.Parameter(torch.zeros(width))
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))

    def activations(self, tokens_MC: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.encoder(tokens_MC - self.centre))

    def decode(self, codes_MN: torch.Tensor) -> torch.Tensor:
        return codes_MN @ self.decoder + self.centre


def largest(activations_MN: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest of each row, 0 elsewhere."""
    values, places = activations_MN.topk(min(count, activations_MN.shape[1]), dim=1)
    return torch.zeros_like(activations_MN).scatter(1, places, values)


def loss(
    sae: Sae, tokens_MC: torch.Tensor, active: int, dead_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unexplained share of the variance, and 1 / 32 of that of dead features on what is unexplained; and the codes (M, N),
    the `active` x M largest of the whole batch."""
    activations = sae.activations(tokens_MC)
    codes = largest(activations.view(1, -1), active * len(tokens_MC)).view_as(activations)
    error = tokens_MC - sae.decode(codes)
    variance = (tokens_MC - tokens_MC.mean(0)).square().sum()
    total = error.square().sum() / variance
    if dead_N.any():
        most, count = tokens_MC.shape[1] // 2, int(dead_N.sum())
        own = largest(activations * dead_N, min(most, count)) @ sae.decoder
        total = total + min(1.0, count / most) / 32 * (own - error.detach()).square().sum() / variance
    return total, codes.detach()


class Tokens(NamedTuple):
    """Of M tokens: their vectors (M, C), of which step (M,), int64, and whether of the concept (M,), bool."""

    vectors: torch.Tensor
    steps: torch.Tensor
    concept: torch.Tensor


class SaeuronPatch(Patch):
    """Adds (z' - z) D to the block's output: of the step's features, a z above its mean becomes z' = z m mean_concept(z).

    Tensors: of the autoencoder `encoder.weight` (N, C), `encoder.bias`, `decoder` (N, C) and `centre`; `times` (S,), and for each
    of them and F features `features`, int64, `means` over all and `concepts`, over the concept alone; all (S, F)."""

    Settings: ClassVar = Constants

    def install(self, pipeline: Any) -> None:
        block = _block(pipeline.unet, self.settings.block)
        if self.tensors["decoder"].shape[1] != block.in_channels:
            raise UserError(
                f"patch: saeuron: {self.settings.block} has another width than the patch; give its own base"
            )
        features, width = self.tensors["decoder"].shape
        self._sae = Sae(width, features)
        self._sae.load_state_dict({name: self.tensors[name] for name in self._sae.state_dict()})
        self._sae.requires_grad_(False)
        self._empty = self.tensors["empty"][None]
        self._time, self._first = 0.0, 0
        pipeline.unet.register_forward_pre_hook(self._see, with_kwargs=True)
        block.register_forward_hook(lambda _, __, output: (self._edited(output[0]), *output[1:]))

    def _see(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call.of(args, kwargs)
        self._time, self._first = call.timestep, 0
        if self.settings.halves == "conditional" and call.guided(self._empty):
            self._first = len(call.latents) // 2

    def _edited(self, output_BCHW: torch.Tensor) -> torch.Tensor:
        step = int((self.tensors["times"] - self._time).abs().argmin())
        features, means, concepts = (
            self.tensors[name][step].to(output_BCHW.device) for name in ("features", "means", "concepts")
        )
        tokens = output_BCHW[self._first :].movedim(1, -1)
        codes = largest(self._sae.to(tokens).activations(tokens.flatten(0, 2)), self.settings.active)
        change = turned(codes[:, features], means.to(codes), concepts.to(codes), self.settings.strength)
        change = (change @ self._sae.decoder[features]).view_as(tokens).movedim(-1, 1)
        return torch.cat([output_BCHW[: self._first], output_BCHW[self._first :] + change])


def turned(
    codes_MF: torch.Tensor, means_F: torch.Tensor, concepts_F: torch.Tensor, strength: float
) -> torch.Tensor:
    """z' - z, shape (M, F)."""
    return torch.where(codes_MF > means_F, codes_MF * (strength * concepts_F - 1), 0)


class Saeuron(Constants, Eraser):
    """Features are learnt without labels. At each step those are the concept's whose share of the mean activation on the
    concept's drawings is largest over that on others. Sections 3.2 and 3.3 of the paper."""

    name = "saeuron"
    kind = "steering"
    changes = "nothing; turns features of one block"
    needs = "prompts; draws its own latents"
    source = "SAeUron (arXiv 2501.18052); cywinski/SAeUron"
    patch = SaeuronPatch
    sandbox: ClassVar = {
        "block": "up_blocks.0.attentions.1",
        "active": 8,
        "expansion": 8,
        "guidance": 1.0,
        "drawings": 2000,
        "concept_share": 0.25,
        "tokens": 250_000,
        "dead_after": 100_000,
    }

    features: int = Field(
        2, ge=0, le=4096, description="Of each step; 1 to 3 of 20,480 in the code, by percentile."
    )
    expansion: int = Field(16, ge=1, le=256, description="Features for each number of a token.")
    drawings: int = Field(30_000, ge=2, le=10**7, description="Whose tokens are learnt from.")
    concept_share: FiniteFloat = Field(
        0.1,
        gt=0,
        lt=1,
        description="Of the drawings, by unsafe prompts; the paper does not tell it for nudity.",
    )
    guidance: FiniteFloat = Field(7.5, ge=1, le=100, description="Of the drawings.")
    tokens: int = Field(
        1_000_000,
        ge=1,
        le=10**9,
        description="Kept of all drawings and steps, in memory; the code learns from all, on disk.",
    )
    epochs: int = Field(5, ge=1, le=1000, description="10 for styles.")
    batch: int = Field(4096, ge=2, le=10**6, description="Tokens of an update.")
    learning_rate: FiniteFloat = Field(4e-4, gt=0, le=1, description="Of Adam; falls to 0 in a line.")
    max_norm: FiniteFloat = Field(1.0, gt=0, le=1e6, description="To which gradients are clipped.")
    dead_after: int = Field(
        10_000_000,
        ge=1,
        le=10**12,
        description="Tokens after which a feature that was 0 for all of them is dead.",
    )

    def unet_evaluations(self, task: Task) -> int:
        return self.drawings * task.sampler.steps * cost_of_a_step(self.guidance)

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> Patch:
        random = task.generator(self.name)
        sampling = Sampling(pipeline, task.sampler, self.guidance)
        empty = texts.states(pipeline, [""])
        tokens = self._collect(pipeline, sampling, empty, task, meter, random)
        sae = self._learn(tokens.vectors, random)
        chosen = self.choose(sae, tokens, len(sampling.times))
        held = {name: each.detach() for name, each in sae.state_dict().items()}
        return self.with_constants({**held, **chosen, "times": sampling.times.float(), "empty": empty[0]})

    def _collect(
        self,
        pipeline: Any,
        sampling: Sampling,
        empty_1LD: torch.Tensor,
        task: Task,
        meter: Meter,
        random: torch.Generator,
    ) -> Tokens:
        """Draw, and keep as many of the conditional half's tokens of each drawing and step."""
        # As many as the budget pays; one with the concept and one without have to be.
        count = max(2, meter.affordable(self.drawings, len(sampling.times) * sampling.cost))
        own = min(max(1, round(count * self.concept_share)), count - 1)
        each = max(1, self.tokens // (count * len(sampling.times)))
        kept: list[torch.Tensor] = []
        vectors, steps, concept = [], [], []

        def keep(_: Any, __: Any, output: Any) -> None:
            found = output[0][-size:].movedim(1, -1).flatten(1, 2)
            places = torch.randperm(found.shape[1], generator=random)[:each]
            kept.append(found[:, places.to(found.device)].flatten(0, 1))

        handle = _block(pipeline.unet, self.block).register_forward_hook(keep)
        for prompts, wanted in ((task.unsafe, own), (task.retain or task.neutral, count - own)):
            states = texts.states(pipeline, prompts)
            for rows in turns(len(prompts), wanted, random).split(16):
                size = len(rows)
                sampling.draw(pipeline.unet, states[rows], empty_1LD, sampling.noise(size, random))
                for step, found in enumerate(kept):
                    vectors.append(found)
                    steps.append(torch.full((len(found),), step))
                    concept.append(torch.full((len(found),), prompts is task.unsafe))
                kept.clear()
        handle.remove()
        return Tokens(torch.cat(vectors), torch.cat(steps), torch.cat(concept))

    def _learn(self, vectors_MC: torch.Tensor, random: torch.Generator) -> Sae:
        width = vectors_MC.shape[1]
        sae = Sae(width, width * self.expansion).to(vectors_MC.device)
        sae.centre.data.copy_(vectors_MC.mean(0))
        batches = -(-len(vectors_MC) // self.batch)
        optimizer = torch.optim.Adam(sae.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: 1 - update / (self.epochs * batches)
        )
        silent = torch.zeros(width * self.expansion, dtype=torch.int64, device=vectors_MC.device)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(vectors_MC), generator=random).split(self.batch):
                batch = vectors_MC[rows.to(vectors_MC.device)]
                error, codes = loss(sae, batch, self.active, silent > self.dead_after)
                error.backward()
                torch.nn.utils.clip_grad_norm_(sae.parameters(), self.max_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                sae.normalize()
                silent = torch.where((codes > 0).any(0), 0, silent + len(batch))
        return sae

    @torch.no_grad()
    def choose(self, sae: Sae, tokens: Tokens, steps: int) -> dict[str, torch.Tensor]:
        """For each step its features with their mean codes over all tokens and over the concept's; all (S, F)."""
        found: dict[str, list[torch.Tensor]] = {"features": [], "means": [], "concepts": []}
        for step in range(steps):
            at = tokens.steps == step
            own, others, every = (
                self._means(sae, tokens.vectors[part.to(tokens.vectors.device)])
                for part in (at & tokens.concept, at & ~tokens.concept, at)
            )
            tiny = torch.finfo(own.dtype).tiny
            score = own / own.sum().clamp(min=tiny) - others / others.sum().clamp(min=tiny)
            features = score.topk(min(self.features, len(score))).indices
            for name, each in (
                ("features", features),
                ("means", every[features]),
                ("concepts", own[features]),
            ):
                found[name].append(each)
        return {name: torch.stack(each) for name, each in found.items()}

    def _means(self, sae: Sae, vectors_MC: torch.Tensor) -> torch.Tensor:
        """Mean code of each feature, shape (N,)."""
        parts = [largest(sae.activations(part), self.active).sum(0) for part in vectors_MC.split(self.batch)]
        return torch.stack(parts).sum(0) / len(vectors_MC)


def _block(unet: Any, name: str) -> Any:
    found = {each for each, module in unet.named_modules() if hasattr(module, "transformer_blocks")}
    if name not in found:
        raise UserError(
            f"block: {name!r}: no transformer of this UNet; use one of {', '.join(sorted(found))}"
        )
    return unet.get_submodule(name)
