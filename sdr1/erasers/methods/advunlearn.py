"""AdvUnlearn: the text encoder trained as ESD trains the UNet, against soft tokens that try to bring the concept back."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, FiniteFloat
from torch.nn.functional import mse_loss

from sdr1.base.errors import UserError
from sdr1.erasers.meter import BACKWARD, Meter
from sdr1.erasers.protocol import Eraser, Task
from sdr1.erasers.trajectories import Sampling, cost_of_a_stop, predict
from sdr1.models import texts


class AdvUnlearn(Eraser):
    """|e(x, t, E(c~)) - [e(x, t, E*(n)) - eta (e(x, t, E*(c)) - e(x, t, E*(n)))]|^2 + w |e(x, t, E(r)) - e(x, t, E*(r))|^2: E is the
    text encoder and E* the base's, c~ the concept's prompt with soft tokens before it, which an attack has chosen to minimise
    |e(x, t, E(c~)) - e(x, t, E*(c))|^2, n the empty prompt, r prompts to keep. Section 4 of the paper, equations 5 to 7.

    The UNet is frozen and latents are drawn under E*, so they do not depend on what is trained. They are shown at their own
    timesteps; the code has ESD's older times (see `esd-x`). Token and position embeddings stay."""

    name = "advunlearn"
    kind = "fine-tuning"
    changes = "the text encoder"
    needs = "prompts, prompts to keep; draws its own latents"
    source = "AdvUnlearn (arXiv 2405.15234); OPTML-Group/AdvUnlearn"
    sandbox: ClassVar = {
        "guidance": 1.5,
        "keep_empty": True,
        "retain_batch": 8,
        "plain": 80,
        "attack_steps": 10,
        "attack_every": 5,
        "attack_rate": 0.03,
        "batches": 64,
        "learning_rate": 3e-4,
        "updates": 400,
        "batch": 8,
    }

    eta: FiniteFloat = Field(1.0, ge=0, le=100, description="Strength, as of ESD.")
    guidance: FiniteFloat = Field(3.0, ge=1, le=100, description="Of the latents' drawing.")
    retain_weight: FiniteFloat = Field(
        0.3, ge=0, le=1e6, description="w; the code's default is 1, the README has 0.3."
    )
    retain_batch: int = Field(5, ge=1, le=4096, description="Prompts to keep of an update.")
    keep_empty: bool = Field(
        False,
        description="Whether one of them is the empty prompt, whose states move too and which nothing else keeps.",
    )
    plain: int = Field(200, ge=0, le=10**7, description="Updates before the first attack.")
    tokens: int = Field(1, ge=1, le=64, description="Soft tokens before the prompt.")
    attack_steps: int = Field(30, ge=0, le=10**6, description="Steps of an attack.")
    attack_every: int = Field(1, ge=1, le=10**6, description="Updates from one attack to the next.")
    attack_rate: FiniteFloat = Field(1e-3, gt=0, le=10, description="Learning rate of an attack's Adam.")
    attack_start: Literal["random", "latest"] = Field(
        "random",
        description="Where it begins: at words drawn from the vocabulary, or, the code's default, at the last attack's end.",
    )
    attack_sums: bool = Field(
        False, description="Whether an attack's gradient is never set back to zero, as in the code."
    )
    batches: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="Of latents, after which the first ones come again; none: each is drawn anew, as in the code.",
    )
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="Of Adam.")
    updates: int = Field(1000, ge=1, le=10**7, description="Of the encoder.")
    batch: int = Field(1, ge=1, le=4096, description="Latents of the first term; they stop at the same step.")

    def unet_evaluations(self, task: Task) -> int:
        drawn = cost_of_a_stop(task.sampler.steps, self.guidance)
        attacks = len(range(self.plain, self.updates, self.attack_every)) * self.attack_steps
        uses = (self.batch, 2, self.updates + attacks), (self.retain_batch, 1, self.updates)
        return round(
            sum(
                size * (min(count, self.batches or count) * (drawn + bases) + count * (1 + BACKWARD))
                for size, bases, count in uses
            )
        )

    def erase(self, pipeline: Any, task: Task, meter: Meter) -> None:
        unet, encoder, random = pipeline.unet, pipeline.text_encoder, task.generator(self.name)
        kept = (*([""] if self.keep_empty else []), *task.kept(self.name))
        unsafe_ids, kept_ids = (texts.ids(pipeline, each).to(encoder.device) for each in (task.unsafe, kept))
        if self.tokens > (most := kept_ids.shape[1] - 2):
            raise UserError(f"tokens: {self.tokens}: a prompt of this model has {most} places; use fewer")
        sampling = Sampling(pipeline, task.sampler, self.guidance)
        empty, unsafe, safe = (texts.states(pipeline, each) for each in ([""], task.unsafe, kept))
        concept = _Stock(sampling, unet, unsafe, empty, self.batch, self.batches, self.eta, False, random)
        rest = _Stock(
            sampling, unet, safe, empty, self.retain_batch, self.batches, None, self.keep_empty, random
        )
        trained = [held for name, held in encoder.named_parameters() if "embeddings." not in name]
        for parameter in trained:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        soft = None
        for update in range(self.updates):
            attacks = update >= self.plain and (update - self.plain) % self.attack_every == 0
            uses = 1 + attacks * self.attack_steps
            if not meter.affords(uses * concept.cost + rest.cost):
                break
            if attacks:
                soft = self._attack(pipeline, concept, unsafe_ids, soft, random)
            seen = concept.take()
            states = encode(encoder, unsafe_ids[seen.prompts], soft)
            mse_loss(predict(unet, seen.latents, seen.time, states), seen.target).backward()
            seen = rest.take()
            states = encode(encoder, kept_ids[seen.prompts])
            error = mse_loss(predict(unet, seen.latents, seen.time, states), seen.target)
            (self.retain_weight * error).backward()
            optimizer.step()
            optimizer.zero_grad()

    def _attack(
        self,
        pipeline: Any,
        concept: _Stock,
        ids: torch.Tensor,
        latest: torch.Tensor | None,
        random: torch.Generator,
    ) -> torch.Tensor:
        """Soft tokens, shape (K, D), that bring the concept back to the encoder as it is now."""
        unet, encoder = pipeline.unet, pipeline.text_encoder
        if latest is None or self.attack_start == "random":
            words = encoder.get_input_embeddings().weight
            chosen = torch.randint(len(words), (self.tokens,), generator=random).to(words.device)
            latest = words[chosen].detach()
        soft = latest.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([soft], lr=self.attack_rate)
        for _ in range(self.attack_steps):
            seen = concept.take()
            states = encode(encoder, ids[seen.prompts], soft)
            error = mse_loss(predict(unet, seen.latents, seen.time, states), seen.given)
            (gradient,) = torch.autograd.grad(error, soft)
            soft.grad = gradient if soft.grad is None or not self.attack_sums else soft.grad + gradient
            optimizer.step()
        return soft.detach()


class _Batch(NamedTuple):
    latents: torch.Tensor
    time: torch.Tensor
    prompts: torch.Tensor
    given: torch.Tensor
    """What the base predicts for the prompts."""
    target: torch.Tensor
    """What the trained encoder's states shall lead to."""


class _Stock:
    """Batches of latents that the base draws for prompts and stops on the way, with what it predicts for them.

    Their target leads away from the prompt by `eta`, or is the base's prediction where that is none. `most` batches are kept and
    come again; none are where it is none. With `first` the first prompt is in every batch.
    """

    def __init__(
        self,
        sampling: Sampling,
        unet: Any,
        states_PLD: torch.Tensor,
        empty_1LD: torch.Tensor,
        size: int,
        most: int | None,
        eta: float | None,
        first: bool,
        random: torch.Generator,
    ) -> None:
        self._sampling, self._unet, self._states, self._empty = sampling, unet, states_PLD, empty_1LD
        self._size, self._most, self._eta, self._first, self._random = size, most, eta, first, random
        self._kept: list[_Batch] = []
        self._taken = 0

    @property
    def cost(self) -> int:
        """Most UNet evaluations that the next batch takes, with the trained prediction for it."""
        trained = 1 + BACKWARD
        if len(self._kept) == self._most:
            return self._size * trained
        drawn = (len(self._sampling.times) - 1) * self._sampling.cost
        return self._size * (drawn + (1 if self._eta is None else 2) + trained)

    def take(self) -> _Batch:
        if len(self._kept) == self._most:
            self._taken += 1
            return self._kept[(self._taken - 1) % len(self._kept)]
        found = self._drawn()
        if self._most is not None:
            self._kept.append(found)
        return found

    @torch.no_grad()
    def _drawn(self) -> _Batch:
        sampling, random = self._sampling, self._random
        step = int(torch.randint(len(sampling.times), (), generator=random))
        prompts = torch.randint(len(self._states), (self._size,), generator=random)
        if self._first:
            prompts[0] = 0
        states, noise = self._states[prompts], sampling.noise(self._size, random)
        latents, time = sampling.draw(self._unet, states, self._empty, noise, step), sampling.times[step]
        given = predict(self._unet, latents, time, states)
        if self._eta is None:
            return _Batch(latents, time, prompts, given, given)
        without = predict(self._unet, latents, time, self._empty.expand_as(states))
        return _Batch(latents, time, prompts, given, without - self._eta * (given - without))


def encode(encoder: Any, ids_BL: torch.Tensor, soft_KD: torch.Tensor | None = None) -> torch.Tensor:
    """Text states, shape (B, L, D), with soft tokens in place of words before each prompt; it is cut to its length behind."""
    if soft_KD is None:
        return encoder(ids_BL)[0]
    count = len(soft_KD)
    longer = torch.cat([ids_BL[:, :1], ids_BL[:, :1].expand(-1, count), ids_BL[:, 1:-count]], 1)

    def spoken(_: Any, __: Any, words_BLD: torch.Tensor) -> torch.Tensor:
        soft = soft_KD.expand(len(words_BLD), -1, -1)
        return torch.cat([words_BLD[:, :1], soft, words_BLD[:, 1 + count :]], 1)

    # The encoder takes ids alone, so the soft tokens take their words' place behind the embedding.
    handle = encoder.get_input_embeddings().register_forward_hook(spoken)
    try:
        return encoder(longer)[0]
    finally:
        handle.remove()
