"""A diffusers text-to-image pipeline as a stochastic policy: samples groups, and evaluates their transitions again."""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdr1.base.errors import TrainingError
from sdr1.base.records import GroupTask, Trajectory
from sdr1.config.policy import PolicyConfig
from sdr1.method import ddim
from sdr1.models import lora, pictures, pipeline_files, schedulers, texts
from sdr1.models.flat import FlatParameters
from sdr1.models.pipeline import load

_KEPT_TEXTS = 256
"""More than an iteration's prompts, mostly; of Stable Diffusion's text states that is 80 MB."""


def check(config: PolicyConfig) -> None:
    """Everything that the policy's files and options show to be wrong, without a weight in memory.

    Raises:
        Unreachable: the configs are on the hub, out of reach.
        UserError: any other mistake.
    """
    pipeline_files.check(config)
    if config.solver is not None:
        described = pipeline_files.scheduler(config).config
        schedulers.check(config.solver, config.steps, described, ("policy.solver", "policy.steps"))
    if config.trainable == "lora":
        lora.add(pipeline_files.unet(config), config.lora, 0)


class Policy:
    """pi(image | prompt): a DDIM chain whose steps inside the noise window are Gaussian, or any solver of diffusers.

    Only the UNet (or its LoRA adapters) is trainable; text encoder, VAE and the reference stay frozen.
    `reference` keeps the base's prediction available for the KL term: a copy of the UNet, or with LoRA the same
    UNet with its adapters off.
    """

    def __init__(
        self, config: PolicyConfig, *, device: str = "cpu", seed: int = 0, reference: bool = False
    ) -> None:
        self.config = config
        if config.precision == "float32":
            # cuDNN's default rounds a convolution's factors to 10 bits, for each batch size in its own way: before any update
            # the ratio would be off 1.
            torch.backends.cudnn.allow_tf32 = False
        self.device = torch.device(device)
        self.pipeline = load(config).to(self.device)
        self.unet = self.pipeline.unet
        if config.channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if config.vae_slicing:
            self.pipeline.vae.enable_slicing()
        for part in (self.unet, self.pipeline.vae, self.pipeline.text_encoder):
            part.requires_grad_(False).eval()
        self._reference_unet = None
        if config.trainable == "lora":
            lora.add(self.unet, config.lora, seed)
        else:
            self._reference_unet = copy.deepcopy(self.unet) if reference else None
            self.unet.requires_grad_(True)
        for unet in filter(None, (self.unet, self._reference_unet)):
            _set_speed_and_memory(unet, config)
        self.parameters = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        self.flat = FlatParameters(self.parameters)
        self.embed = lru_cache(_KEPT_TEXTS)(self._embed)
        """Frozen text-encoder states of one prompt, shape (L, D), float32; the latest prompts' are kept."""
        scheduler = self.pipeline.scheduler
        schedule = _ddim_schedule(scheduler, config.steps)
        self._timesteps, self._alpha_bars, self._alpha_bars_prev = (each.to(self.device) for each in schedule)
        self._prediction_type = scheduler.config.prediction_type
        self._solver = (
            schedulers.make(config.solver, scheduler.config, "policy.solver") if config.solver else None
        )
        self.alpha_bars = scheduler.alphas_cumprod.to(self.device)
        """Of each timestep that the model was trained on, shape (T,), float32."""
        factor = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        side = config.size // factor if config.size else self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, side, side)
        """C, H, W."""

    @torch.no_grad()
    def _embed(self, text: str) -> torch.Tensor:
        return texts.states(self.pipeline, [text])[0]

    def transition(
        self,
        latents_BCHW: torch.Tensor,
        steps_B: torch.Tensor,
        text: str,
        *,
        noisy: bool = True,
        reference: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, C, H, W) and standard deviation (B, 1, 1, 1) of x_{t-1} given x_t and the prompt, float32.

        `steps_B` are positions in the schedule, int64; `noisy` False takes eta = 0.
        """
        times = self._timesteps[steps_B]
        prediction = self._predict(latents_BCHW, times, text, reference, self.config.guidance_scale)
        eta = self.config.eta if noisy else 0.0
        bars, prevs = self._alpha_bars[steps_B], self._alpha_bars_prev[steps_B]
        return ddim.transition(prediction, latents_BCHW, bars, prevs, eta, self._prediction_type)

    def noise_part(
        self, mean_BCHW: torch.Tensor, latents_BCHW: torch.Tensor, steps_B: torch.Tensor
    ) -> torch.Tensor:
        """The predicted noise in a `transition`'s mean, times a number of the step's own."""
        bars, prevs = self._alpha_bars[steps_B], self._alpha_bars_prev[steps_B]
        return ddim.noise_part(mean_BCHW, latents_BCHW, bars, prevs)

    def epsilon(
        self, latents_BCHW: torch.Tensor, times_B: torch.Tensor, text: str, *, reference: bool = False
    ) -> torch.Tensor:
        """The noise in latents at any timestep, int64, as the model sees it without guidance; (B, C, H, W), float32."""
        prediction = self._predict(latents_BCHW, times_B, text, reference, guidance_scale=1.0)
        bars = self.alpha_bars[times_B].view(-1, 1, 1, 1)
        return ddim.split_prediction(prediction, latents_BCHW, bars, self._prediction_type)[1]

    def _predict(
        self,
        latents_BCHW: torch.Tensor,
        times_B: torch.Tensor,
        text: str,
        reference: bool,
        guidance_scale: float,
    ) -> torch.Tensor:
        unet = self.unet
        context: AbstractContextManager = nullcontext()
        if reference:
            if self._reference_unet is not None:
                unet = self._reference_unet
            else:
                context = lora.switched_off(self.unet)
        size = len(latents_BCHW)
        conditional = self.embed(text).expand(size, -1, -1)
        with context, self._autocast():
            if guidance_scale == 1:
                return unet(latents_BCHW, times_B, encoder_hidden_states=conditional).sample.float()
            states = torch.cat([self.embed("").expand(size, -1, -1), conditional])
            both = unet(
                latents_BCHW.repeat(2, 1, 1, 1), times_B.repeat(2), encoder_hidden_states=states
            ).sample
        without, with_prompt = both.float().chunk(2)
        return without + guidance_scale * (with_prompt - without)

    def _autocast(self) -> AbstractContextManager:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.config.precision))

    @torch.no_grad()
    def chain(
        self, task: GroupTask, group_size: int, *, with_reference: bool
    ) -> tuple[torch.Tensor, Trajectory]:
        """Sample one group: its final latents, shape (G, C, H, W), float32, and the transitions to train on.

        The noise depends on the task and the sample alone, drawn on the CPU, so that any worker makes the same group.
        """
        window = self.config.window
        latents = self._initial_noise(task, group_size)
        shape = (len(window), *self.latent_shape)
        noise_KG = torch.stack([normal(task, shape, "steps", sample) for sample in range(group_size)], dim=1)
        noise_KG = noise_KG.to(self.device)
        states, log_probs, references = [], [], []
        for step in range(self.config.steps):
            noisy = step in window
            # Samples that share their initial noise are one state until the first noisy step: evaluated once.
            steps = torch.full((len(latents),), step, device=self.device)
            given = latents, steps, task.prompt.text
            mean, sigma = self.transition(*given, noisy=noisy)
            if not noisy:
                latents = mean
                continue
            if with_reference:
                references.append(self.transition(*given, reference=True)[0].expand(group_size, -1, -1, -1))
            states.append(latents.expand(group_size, -1, -1, -1))
            latents = mean + sigma * noise_KG[step - window.start]
            log_probs.append(ddim.log_prob(latents, mean, sigma))
            if step == window[-1]:
                states.append(latents)
        trajectory = Trajectory(
            states=torch.stack(states).cpu().numpy(),
            steps=np.arange(window.start, window.stop),
            log_probs=torch.stack(log_probs).cpu().numpy(),
            reference_means=torch.stack(references).cpu().numpy() if with_reference else None,
        )
        return latents, trajectory

    @torch.no_grad()
    def draw(self, task: GroupTask, group_size: int) -> torch.Tensor:
        """Final latents of one group, shape (G, C, H, W), float32: by `policy.solver`, or else by the chain.

        Initial noise, and the noise of a solver that adds some, depend on the task and the sample alone.
        """
        solver = self._solver
        if solver is None:
            return self.chain(task, group_size, with_reference=False)[0]
        solver.set_timesteps(self.config.steps, device=self.device)
        latents = self._initial_noise(task, group_size) * solver.init_noise_sigma
        more = {}
        if "generator" in inspect.signature(solver.step).parameters:
            seeds = [task.noise_seed("solver", sample) for sample in range(group_size)]
            more["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        for time in solver.timesteps:
            seen = solver.scale_model_input(latents, time)
            prediction = self._predict(
                seen, time.expand(group_size), task.prompt.text, False, self.config.guidance_scale
            )
            latents = solver.step(prediction, time, latents, **more).prev_sample
        return latents

    def decode(self, latents_GCHW: torch.Tensor, task: GroupTask) -> np.ndarray:
        """Images of a group's final latents, RGB, shape (G, H, W, 3), uint8.

        Raises:
            TrainingError: a pixel is not finite.
        """
        try:
            return pictures.decode(self.pipeline.vae, latents_GCHW)
        except FloatingPointError as error:
            raise TrainingError(
                f"iteration {task.iteration}, group {task.group} ({task.prompt.text!r}): {error}; go on from an earlier "
                "checkpoint with a lower learner.learning_rate"
            ) from error

    def _initial_noise(self, task: GroupTask, group_size: int) -> torch.Tensor:
        """Latents to begin with, shape (G, C, H, W) or, where samples share them, (1, C, H, W), float32."""
        if self.config.initial_noise == "sample":
            samples = [normal(task, self.latent_shape, "initial", sample) for sample in range(group_size)]
            return torch.stack(samples).to(self.device)
        source = task if self.config.initial_noise == "group" else replace(task, group=-1)
        return normal(source, self.latent_shape, "initial")[None].to(self.device)

    def save(self, folder: Path) -> None:
        """Write a diffusers pipeline with the trained UNet (LoRA merged); with LoRA also `lora/`, the adapter alone."""
        pipeline = copy.deepcopy(self.pipeline)
        if self.config.trainable == "lora":
            lora.save(self.unet, self.config.lora, folder / "lora")
            lora.merge(pipeline.unet)
        pipeline.save_pretrained(folder)


def normal(task: GroupTask, shape: tuple[int, ...], *key: int | str) -> torch.Tensor:
    """Standard normal noise of one stream of a task, float32; drawn on the CPU, so that every device has the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(task.noise_seed(*key)))


def _set_speed_and_memory(unet: Any, config: PolicyConfig) -> None:
    if config.attention_slicing:
        unet.set_attention_slice("auto")
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        unet.compile()


def _ddim_schedule(scheduler: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timesteps (S,), alpha_bar at each and after each, by diffusers' own DDIM schedule for the pipeline."""
    schedule = schedulers.make("DDIMScheduler", scheduler.config, "policy.model")
    schedule.set_timesteps(steps)
    timesteps = schedule.timesteps
    previous = timesteps - schedule.config.num_train_timesteps // steps
    bars = schedule.alphas_cumprod
    after = torch.where(previous >= 0, bars[previous.clamp(min=0)], schedule.final_alpha_cumprod)
    return timesteps, bars[timesteps], after
