"""The model that is trained, how its files are read, and how it draws while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from sdr1.base.section import SANDBOX, Section, refuse_set


class LoraConfig(Section):
    rank: int = Field(16, ge=1, le=4096, description="Rank of the low-rank update.")
    alpha: FiniteFloat = Field(16.0, ge=1e-3, le=1e5, description="The update is scaled by alpha / rank.")
    target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        description="Names of the UNet's linear layers that get an adapter.",
    )


class ModelFiles(Section):
    """How the files of a diffusion model are read."""

    revision: str | None = Field(None, description="Branch, tag or commit of a hub id; None is its default.")
    variant: str | None = Field(
        None, description="Variant of the weight files, e.g. `fp16`; they are loaded in float32 all the same."
    )
    config: str | None = Field(
        None,
        description="Of a single file: pipeline folder or hub id to take configs, tokenizer and scheduler "
        "from; None: Stable Diffusion 1.5's or 2.1's from the hub.",
    )
    unet: Path | None = Field(
        None, description="UNet to put over the base's: a diffusers UNet folder, or a .safetensors file."
    )


class PolicyConfig(ModelFiles):
    model: str = Field(
        SANDBOX,
        description="`sandbox`, a diffusers pipeline folder, a hub id, or a single .safetensors file.",
    )
    size: int | None = Field(
        None,
        ge=8,
        le=8192,
        description="Height and width of the images in pixels; None is the model's own size.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Autocast of the UNet in rollout and learner; weights, latents and log-probs stay float32. With "
        "learner.micro_batch = rollout.group_size both sides compute in the same shapes and the ratio starts at 1.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, a third more time."
    )
    channels_last: bool = Field(
        False,
        description="Keep the UNet's weights in NHWC order. Measured: no difference on a CPU, 6 % slower on an H200.",
    )
    compile: bool = Field(False, description="torch.compile the UNet: slower to start, faster to run.")
    attention_slicing: bool = Field(False, description="Compute attention in slices: less memory, more time.")
    vae_slicing: bool = Field(False, description="Decode images one at a time: less memory, more time.")
    trainable: Literal["full", "lora"] = Field(
        "full", description="Train the whole UNet, or peft LoRA adapters on it."
    )
    lora: LoraConfig = Field(LoraConfig(), description="The adapters, when `trainable` is `lora`.")
    solver: str | None = Field(
        None,
        description="A diffusers scheduler class that draws rollouts, e.g. DDIMScheduler, DPMSolverMultistepScheduler, "
        "UniPCMultistepScheduler, EulerDiscreteScheduler. None: sdr1's own DDIM chain with noise, which GRPO trains.",
    )
    steps: int = Field(50, ge=2, le=10_000, description="Steps of a rollout.")
    guidance_scale: FiniteFloat = Field(
        5.0,
        ge=1,
        le=1000,
        description="Classifier-free guidance in rollout and learner; 1 evaluates the UNet once a step.",
    )
    eta: FiniteFloat = Field(
        1.0, ge=1e-4, le=1, description="DDIM noise level inside the noise window (0 outside)."
    )
    noise_window: tuple[int, int] | None = Field(
        None,
        description="First and one-past-last step with noise; exactly these transitions are trained. "
        "None: every step but the last, where sigma is smallest.",
    )
    initial_noise: Literal["sample", "group", "iteration"] = Field(
        "sample",
        description="x_T drawn for each sample, or shared by the samples of a group, or of an iteration.",
    )

    @property
    def evaluations(self) -> int:
        """Guided predictions of one sample's rollout: some of diffusers' solvers make more than one a step."""
        if self.solver in (
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
        ):
            return 2 * self.steps - 1
        return self.steps + (self.solver == "PNDMScheduler")

    @property
    def window(self) -> range:
        """The steps that are sampled with noise and trained."""
        start, stop = self.noise_window or (0, self.steps - 1)
        return range(start, stop)

    @model_validator(mode="after")
    def _nothing_of_the_chain_beside_a_solver(self) -> PolicyConfig:
        if self.solver is not None:
            refuse_set(
                self,
                ("eta", "noise_window", "initial_noise"),
                "policy.",
                f"belongs to the chain that policy.solver={self.solver} replaces; leave one of them out",
            )
        return self

    @model_validator(mode="after")
    def _window_inside_steps(self) -> PolicyConfig:
        if not 0 <= self.window.start < self.window.stop <= self.steps:
            raise ValueError(
                f"noise_window [{self.window.start}, {self.window.stop}) must hold at least one step and lie inside "
                f"[0, steps={self.steps}); e.g. noise_window=[0,{self.steps // 2}]"
            )
        return self
