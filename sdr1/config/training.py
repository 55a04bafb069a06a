"""The one description of a run: pydantic models, read from YAML with dotted overrides."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag, field_validator, model_validator

from sdr1.base.errors import UserError, reason
from sdr1.base.plain_data import checked, parse_overrides, read_yaml
from sdr1.base.records import Label
from sdr1.base.section import SANDBOX as SANDBOX
from sdr1.base.section import Device, Section
from sdr1.rewards.terms import AnyTerm, EmbeddingTerm
from sdr1.rewards.terms.embedding import AnchorsConfig as AnchorsConfig

MOST_SEED = 2**63 - 1
MOST_ITERATIONS = 10_000_000
MOST_SECONDS = 10_000_000.0
MOST_WORKERS = 10_000
"""Above these a number is a slip of the hand, not a wish."""
Beta = Annotated[FiniteFloat, Field(ge=0, lt=1)]


class RunConfig(Section):
    directory: Path = Field(Path("outputs/run"), description="Folder of everything this run writes.")
    resume: Literal["never", "auto"] = Field(
        "never",
        description="`auto` goes on from the newest good checkpoint in `directory`, if there is one: for jobs that a "
        "cluster starts again.",
    )
    task_timeout: FiniteFloat = Field(
        600.0,
        gt=0,
        le=MOST_SECONDS,
        description="Seconds after which a worker that has not answered one call is replaced.",
    )
    start_timeout: FiniteFloat = Field(
        900.0,
        gt=0,
        le=MOST_SECONDS,
        description="The same for a worker's start, from when the cluster has room for it: it imports libraries and "
        "reads models. Waiting for room has no end. A worker that freezes while it starts is missed for so long.",
    )
    placement: Literal["separate", "shared"] = Field(
        "separate",
        description="GPUs of the actors: one each, or `shared`: all actors on `cuda` take equal fractions of one GPU, "
        "for a machine that has no other.",
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="Torch threads of every process; part of the result's identity on the CPU.",
    )


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
        description="Of a single-file checkpoint: pipeline folder or hub id to take configs, tokenizer and scheduler "
        "from; None: Stable Diffusion 1.5's or 2.1's from the hub.",
    )
    unet: Path | None = Field(
        None, description="UNet to put over the base's: a diffusers UNet folder, or a .safetensors file."
    )


class PolicyConfig(ModelFiles):
    model: str = Field(
        SANDBOX,
        description="`sandbox`, a diffusers pipeline folder, a hub id, or a single-file checkpoint (.safetensors).",
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
    channels_last: bool = Field(False, description="Keep the UNet's weights in NHWC order; faster on GPUs.")
    compile: bool = Field(False, description="torch.compile the UNet: slower to start, faster to run.")
    attention_slicing: bool = Field(False, description="Compute attention in slices: less memory, more time.")
    vae_slicing: bool = Field(False, description="Decode images one at a time: less memory, more time.")
    trainable: Literal["full", "lora"] = Field(
        "full", description="Train the whole UNet, or peft LoRA adapters on it."
    )
    lora: LoraConfig = Field(LoraConfig(), description="The adapters, when `trainable` is `lora`.")
    steps: int = Field(50, ge=2, le=10_000, description="DDIM steps of a rollout.")
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
    def window(self) -> range:
        """The steps that are sampled with noise and trained."""
        start, stop = self.noise_window or (0, self.steps - 1)
        return range(start, stop)

    @model_validator(mode="after")
    def _window_inside_steps(self) -> PolicyConfig:
        if not 0 <= self.window.start < self.window.stop <= self.steps:
            raise ValueError(
                f"noise_window [{self.window.start}, {self.window.stop}) must hold at least one step and lie inside "
                f"[0, steps={self.steps}); e.g. noise_window=[0,{self.steps // 2}]"
            )
        return self


class PromptSource(Section):
    """Where prompts come from and how they get their labels."""

    path: str = Field(
        SANDBOX,
        description="`sandbox`, a .txt (one prompt a line), .csv or .jsonl file, or `hub:DATASET[:SPLIT]`.",
    )
    column: str | None = Field(
        None,
        description="Column of the prompts; None takes the first of prompt, text, caption, adv_prompt, "
        "adversarial_prompt, `sensitive prompt` that is there.",
    )
    label: Label | Literal["score"] | None = Field(
        None,
        description="Label of the whole file, or `score`: by the sign of a prompt's safety score, which the reward's "
        "text encoder computes at start-up. None takes the label column.",
    )
    label_column: str | None = Field(
        None,
        description="Column of the labels; None takes `label` where it is there, in I2P files `categories`.",
    )
    unsafe_categories: tuple[str, ...] | None = Field(
        None,
        description="Values of the label column that make a prompt unsafe, any other makes it safe; a cell may hold "
        "several, with commas between. None: the cells say safe or unsafe; all of I2P is unsafe.",
    )


class MixedSource(PromptSource):
    weight: FiniteFloat = Field(
        1.0, ge=1e-6, le=1e6, description="Share of the groups, relative to the other weights."
    )


class PromptsConfig(PromptSource):
    mix: tuple[MixedSource, ...] = Field(
        (), description="Several sources with weights, in place of `path` and its labels."
    )
    per_iteration: int = Field(
        32, ge=1, le=100_000, description="Groups an iteration; each group is one prompt."
    )
    unsafe_share: FiniteFloat | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the groups with an unsafe prompt; None takes the file as it is shuffled.",
    )

    @property
    def unsafe_per_iteration(self) -> int | None:
        return None if self.unsafe_share is None else round(self.unsafe_share * self.per_iteration)


class Elastic(Section):
    """A fleet that follows what the cluster can give."""

    min: int = Field(1, ge=1, le=MOST_WORKERS, description="Workers that training waits for.")
    max: int = Field(
        ge=1, le=MOST_WORKERS, description="Workers asked for; those beyond `min` join when resources appear."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Elastic:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; use min <= max")
        return self


# A plain union would answer a mistake in {min, max} with "should be an integer".
Workers = Annotated[
    Annotated[int, Field(ge=1, le=MOST_WORKERS), Tag("int")] | Annotated[Elastic, Tag("Elastic")],
    Discriminator(lambda value: "Elastic" if isinstance(value, dict | Elastic) else "int"),
]


def bounds(workers: int | Elastic) -> Elastic:
    """Least and most workers; a plain number is both."""
    return workers if isinstance(workers, Elastic) else Elastic(min=workers, max=workers)


class RolloutConfig(Section):
    workers: Workers = Field(1, description="Rollout actors: a number, or {min, max} for an elastic fleet.")
    max_staleness: int = Field(
        0,
        ge=0,
        le=1,
        description="0: strictly on-policy. 1: groups of the next iteration start on the weights of this one, "
        "so that rollout workers never wait for the learner.",
    )
    group_size: int = Field(
        16, ge=2, le=10_000, description="Images of one prompt; advantages compare them, so at least 2."
    )
    device: Device = Field("cpu", description="Device of every rollout actor; `cuda` takes one GPU an actor.")


class RewardConfig(EmbeddingTerm):
    """The main term, further terms, and where they are computed."""

    model: str = Field(
        SANDBOX,
        description="`sandbox`, `hps-v2.1`, `hps-v2.0`, an open_clip model name, `hf-hub:ID` or `local-dir:FOLDER`.",
    )
    terms: dict[str, AnyTerm] = Field(
        {},
        description="Further terms by name; the reward is the weighted sum of the main term and these. Kinds: "
        "steered, plain, negative, nudenet, q16, http, or {import: 'module:factory'}.",
    )
    batch: int = Field(
        64, ge=1, le=100_000, description="Images that the encoder takes in one forward pass, at most."
    )
    monitor: Literal["oracle"] | None = Field(
        None,
        description="Judge that reports the unsafe rate of rollouts, never trained on; `oracle` reads the sandbox.",
    )
    workers: Workers = Field(1, description="Reward actors: a number, or {min, max}.")
    device: Device = Field("cpu", description="Device of every reward actor.")

    @field_validator("terms", mode="before")
    @classmethod
    def _import_is_a_kind(cls, terms: Any) -> Any:
        if not isinstance(terms, dict):
            return terms
        return {
            name: {"kind": "import", **term} if isinstance(term, dict) and "import" in term else term
            for name, term in terms.items()
        }

    @field_validator("terms")
    @classmethod
    def _names_are_metrics(cls, terms: dict[str, Any]) -> dict[str, Any]:
        for name in terms:
            if name == "main" or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"term name {name!r}: use small letters, digits and _, and not `main`")
        return terms


class LearnerConfig(Section):
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="AdamW learning rate.")
    decay_start: FiniteFloat = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the run after which the learning rate falls exponentially to a tenth at its end; 1 keeps it.",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW betas.")
    weight_decay: FiniteFloat = Field(1e-4, ge=0, le=10, description="AdamW weight decay.")
    max_grad_norm: FiniteFloat = Field(1.0, ge=1e-6, le=1e6, description="Gradient norm is clipped to this.")
    clip_range: FiniteFloat = Field(
        1e-4,
        ge=1e-9,
        le=1,
        description="c of the clipped ratio [1-c, 1+c]; log-probs are means over dimensions.",
    )
    advantage_clip: FiniteFloat = Field(
        2.5, ge=1e-3, le=1e3, description="Advantages are clamped to +- this."
    )
    advantage_scale: Literal["group", "pooled"] = Field(
        "group",
        description="Divide a group's centred rewards by its own standard deviation, or by that pooled over the "
        "latest iteration's worth of groups with the same label.",
    )
    kl_weight: FiniteFloat = Field(
        0.0, ge=0, le=1e6, description="beta of the KL to the base model; 0 evaluates no reference."
    )
    kl_on: Literal["all", "safe"] = Field("all", description="Prompts whose groups carry the KL term.")
    groups_per_update: int | None = Field(
        None,
        ge=1,
        description="Groups of one optimizer step; must divide prompts.per_iteration. None: all of them.",
    )
    micro_batch: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="Transitions (sample x timestep) of one forward and backward pass.",
    )
    ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="Data-parallel learner processes that split samples x timesteps of every group; `cuda` takes one "
        "GPU a rank. For a fixed number the result is the same bits; another number differs by float rounding.",
    )
    device: Device = Field("cpu", description="Device of the learner.")


class TrainingEvaluationConfig(Section):
    every: int = Field(
        0,
        ge=0,
        le=MOST_ITERATIONS,
        description="Iterations between evaluations of the current weights beside training, by the sandbox's protocol and "
        "for its models only; 0: none.",
    )
    images: int = Field(
        12, ge=1, le=100_000, description="Images behind each concept's and each task's rate."
    )


class TrackingConfig(Section):
    enabled: bool = Field(
        True, description="Log to MLflow; MLFLOW_TRACKING_URI picks a server, default is a local file."
    )
    experiment: str = Field("sdr1", description="MLflow experiment.")
    wait_seconds: FiniteFloat = Field(
        60.0,
        ge=0,
        le=MOST_SECONDS,
        description="How long the end of a run waits for an MLflow server that is away.",
    )
    images_every: int = Field(10, ge=1, le=MOST_ITERATIONS, description="Iterations between sample grids.")


class CheckpointConfig(Section):
    every: int = Field(1, ge=1, le=MOST_ITERATIONS, description="Iterations between checkpoints.")
    keep: int = Field(2, ge=1, le=MOST_ITERATIONS, description="Newest checkpoints kept.")
    best: str | None = Field(
        None,
        description="Metric whose best checkpoint is kept too, e.g. reward_unsafe, or -unsafe_rate where less is "
        "better; with evaluation.every also eval/utility/overall, -eval/unsafe_trained and the like.",
    )


class Config(Section):
    """A training run."""

    seed: int = Field(0, ge=0, le=MOST_SEED, description="Every random choice of the run follows from it.")
    iterations: int = Field(
        300, ge=1, le=MOST_ITERATIONS, description="Rounds of rollout, reward and update."
    )
    run: RunConfig = RunConfig()
    policy: PolicyConfig = PolicyConfig()
    prompts: PromptsConfig = PromptsConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: TrainingEvaluationConfig = TrainingEvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def groups_per_update(self) -> int:
        return self.learner.groups_per_update or self.prompts.per_iteration

    @property
    def images_per_iteration(self) -> int:
        return self.prompts.per_iteration * self.rollout.group_size

    @property
    def states_per_group(self) -> tuple[int, int]:
        """States a group's UNet evaluations are of, in the whole chain and among the trained steps.

        Samples that share their initial noise are one state up to and including the first noisy step.
        """
        size, policy = self.rollout.group_size, self.policy
        again = 0 if policy.initial_noise == "sample" else size - 1
        chain, trained = size * policy.steps, size * len(policy.window)
        return chain - again * (policy.window.start + 1), trained - again

    @property
    def learner_passes(self) -> int:
        """Forward and backward passes over one group, on each rank."""
        transitions = self.rollout.group_size * len(self.policy.window)
        return passes(transitions, self.learner.micro_batch, self.learner.ranks)

    def has_kl(self, label: str | None) -> bool:
        """Whether a group with this prompt label carries the KL term."""
        return self.learner.kl_weight > 0 and (self.learner.kl_on == "all" or label == "safe")

    @property
    def gpu_share(self) -> float:
        """GPUs that one actor on `cuda` takes, rounded down to what Ray can count."""
        if self.run.placement == "separate":
            return 1.0
        counts = (
            (self.learner.device, self.learner.ranks),
            (self.rollout.device, bounds(self.rollout.workers).max),
            (self.reward.device, bounds(self.reward.workers).max),
        )
        actors = sum(count for device, count in counts if device != "cpu")
        return math.floor(10_000 / max(1, actors)) / 10_000

    @model_validator(mode="after")
    def _evaluated_when_best_is_an_evaluation(self) -> Config:
        best = (self.checkpoint.best or "").lstrip("-")
        if best.startswith("eval/") and self.evaluation.every == 0:
            raise ValueError(
                f"checkpoint.best: {best} is measured by evaluations; set evaluation.every, e.g. 10"
            )
        return self

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Config:
        groups, per_update = self.prompts.per_iteration, self.groups_per_update
        if groups % per_update:
            divisors = [d for d in range(1, groups + 1) if groups % d == 0]
            raise ValueError(
                f"learner.groups_per_update: {per_update} does not divide prompts.per_iteration={groups}; "
                f"use one of {divisors}"
            )
        transitions = self.rollout.group_size * len(self.policy.window)
        if self.learner.ranks > transitions:
            raise ValueError(
                f"learner.ranks: {self.learner.ranks} cannot share the {transitions} transitions of a group "
                f"(rollout.group_size {self.rollout.group_size} x {len(self.policy.window)} noisy steps); use as many or fewer"
            )
        return self


def passes(transitions: int, micro_batch: int, ranks: int) -> int:
    """How many micro-batches of at most `micro_batch` transitions each rank makes of a group's."""
    return math.ceil(transitions / (micro_batch * ranks))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, validate.

    Raises:
        UserError: the file, an override or a value is wrong; the message names field, value and fix.
    """
    from omegaconf import OmegaConf

    changes, path = parse_overrides(overrides), Path(path)
    held = read_yaml(path, "CONFIG")
    try:
        values = OmegaConf.to_container(OmegaConf.merge(held, changes), resolve=True)
    except Exception as error:
        # Interpolations, and overrides of what is no mapping in the file.
        raise UserError(
            f"CONFIG: {path} cannot be read: {reason(error)}; mend the file or the override"
        ) from error
    return validate(values)


def validate(values: Any) -> Config:
    """Build a `Config` from plain data; a mistake becomes one `UserError` line."""
    return checked(Config, values)
