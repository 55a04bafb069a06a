"""The one description of a run: pydantic models, read from YAML with dotted overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from sdr1.errors import UserError

SANDBOX = "sandbox"
"""The name that stands for the models, prompts and oracle shipped with the package."""

Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
        description="Seconds after which a worker that has not answered one call is replaced.",
    )
    threads: int = Field(
        1, ge=1, description="Torch threads of every process; part of the result's identity on the CPU."
    )


class LoraConfig(Section):
    rank: int = Field(16, ge=1, description="Rank of the low-rank update.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        description="Names of the UNet's linear layers that get an adapter.",
    )


class PolicyConfig(Section):
    model: str = Field(SANDBOX, description="`sandbox`, a diffusers pipeline folder, or a hub id.")
    trainable: Literal["full", "lora"] = Field(
        "full", description="Train the whole UNet, or peft LoRA adapters on it."
    )
    lora: LoraConfig = Field(LoraConfig(), description="The adapters, when `trainable` is `lora`.")
    steps: int = Field(50, ge=2, description="DDIM steps of a rollout.")
    guidance_scale: FiniteFloat = Field(
        5.0,
        ge=1,
        description="Classifier-free guidance in rollout and learner; 1 evaluates the UNet once a step.",
    )
    eta: FiniteFloat = Field(
        1.0, gt=0, le=1, description="DDIM noise level inside the noise window (0 outside)."
    )
    noise_window: tuple[int, int] | None = Field(
        None,
        description="First and one-past-last step with noise; exactly these transitions are trained. "
        "None: every step but the last, where sigma is smallest.",
    )
    initial_noise: Literal["sample", "group"] = Field(
        "sample", description="x_T drawn for each sample, or shared by the samples of a group."
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


class PromptsConfig(Section):
    path: str = Field(
        SANDBOX,
        description="`sandbox`, or a .jsonl file of {text, label} or a .txt file of one prompt a line.",
    )
    per_iteration: int = Field(32, ge=1, description="Groups an iteration; each group is one prompt.")
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

    min: int = Field(1, ge=1, description="Workers that training waits for.")
    max: int = Field(ge=1, description="Workers asked for; those beyond `min` join when resources appear.")

    @model_validator(mode="after")
    def _ordered(self) -> Elastic:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; use min <= max")
        return self


Workers = Annotated[int, Field(ge=1)] | Elastic


def bounds(workers: int | Elastic) -> Elastic:
    """Least and most workers; a plain number is both."""
    return workers if isinstance(workers, Elastic) else Elastic(min=workers, max=workers)


class RolloutConfig(Section):
    workers: Workers = Field(1, description="Rollout actors: a number, or {min, max} for an elastic fleet.")
    unguided_iterations: int = Field(
        0,
        ge=0,
        description="First iterations that sample without guidance whatever policy.guidance_scale says: a group then "
        "holds more different pictures, so safe ones are found sooner, and a step costs one UNet evaluation.",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        le=1,
        description="0: strictly on-policy. 1: groups of the next iteration start on the weights of this one, "
        "so that rollout workers never wait for the learner.",
    )
    group_size: int = Field(
        16, ge=2, description="Images of one prompt; advantages compare them, so at least 2."
    )
    device: Device = Field("cpu", description="Device of every rollout actor; `cuda` takes one GPU an actor.")


class AnchorsConfig(Section):
    """The paper's compact anchor phrases."""

    safe: tuple[str, ...] = Field(
        (
            "a safe",
            "a non-violent, non-sexual image",
            "a wholesome, PG-rated photo",
            "an image with no nudity, no gore, no weapons",
            "appropriate image",
        ),
        description="Phrases the safety direction points to; empty: away from the unsafe ones only.",
    )
    unsafe: tuple[str, ...] = Field(
        (
            "explicit sexual content and nudity",
            "pornographic material",
            "an image with naked people engaged in sexual acts",
        ),
        min_length=1,
        description="Phrases the safety direction points away from.",
    )


class RewardConfig(Section):
    model: str = Field(SANDBOX, description="`sandbox`, or an open_clip model name or `local-dir:FOLDER`.")
    checkpoint: Path | None = Field(None, description="Weights file for an open_clip model name.")
    alpha: FiniteFloat = Field(
        0.5, ge=0, description="How far a prompt's embedding is moved along the safety direction."
    )
    steering: Literal["translation", "projection"] = Field(
        "translation", description="Add alpha v, or first take the prompt's own share of v away."
    )
    steer: Literal["unsafe", "negative", "all"] = Field(
        "unsafe", description="Steered prompts: labelled unsafe, with a negative safety score, or all."
    )
    anchors: AnchorsConfig | Literal["sandbox"] = Field(
        AnchorsConfig(), description="Anchor phrases of the safety direction."
    )
    monitor: Literal["oracle"] | None = Field(
        None,
        description="Judge that reports the unsafe rate of rollouts, never trained on; `oracle` reads the sandbox.",
    )
    workers: Workers = Field(1, description="Reward actors: a number, or {min, max}.")
    device: Device = Field("cpu", description="Device of every reward actor.")


class LearnerConfig(Section):
    learning_rate: FiniteFloat = Field(1e-5, gt=0, description="AdamW learning rate.")
    decay: Literal["constant", "linear"] = Field(
        "constant", description="Keep the learning rate, or let it fall linearly to a tenth over the run."
    )
    betas: tuple[FiniteFloat, FiniteFloat] = Field((0.9, 0.999), description="AdamW betas.")
    weight_decay: FiniteFloat = Field(1e-4, ge=0, description="AdamW weight decay.")
    max_grad_norm: FiniteFloat = Field(1.0, gt=0, description="Gradient norm is clipped to this.")
    clip_range: FiniteFloat = Field(
        1e-4, gt=0, description="c of the clipped ratio [1-c, 1+c]; log-probs are means over dimensions."
    )
    advantage_clip: FiniteFloat = Field(2.5, gt=0, description="Advantages are clamped to +- this.")
    advantage_scale: Literal["group", "pooled"] = Field(
        "group",
        description="Divide a group's centred rewards by its own standard deviation, or by that pooled over the "
        "latest iteration's worth of groups with the same label.",
    )
    kl_weight: FiniteFloat = Field(
        0.0, ge=0, description="beta of the KL to the base model; 0 evaluates no reference."
    )
    kl_on: Literal["all", "safe"] = Field("all", description="Prompts whose groups carry the KL term.")
    groups_per_update: int | None = Field(
        None,
        ge=1,
        description="Groups of one optimizer step; must divide prompts.per_iteration. None: all of them.",
    )
    micro_batch: int = Field(
        32, ge=1, description="Transitions (sample x timestep) of one forward and backward pass."
    )
    device: Device = Field("cpu", description="Device of the learner.")


class TrainingEvaluationConfig(Section):
    every: int = Field(
        0, ge=0, description="Iterations between evaluations of the current weights beside training; 0: none."
    )
    images: int = Field(12, ge=1, description="Images behind each concept's and each task's rate.")


class TrackingConfig(Section):
    enabled: bool = Field(
        True, description="Log to MLflow; MLFLOW_TRACKING_URI picks a server, default is a local file."
    )
    experiment: str = Field("sdr1", description="MLflow experiment.")
    wait_seconds: FiniteFloat = Field(
        60.0, ge=0, description="How long the end of a run waits for an MLflow server that is away."
    )
    images_every: int = Field(10, ge=1, description="Iterations between sample grids.")


class CheckpointConfig(Section):
    every: int = Field(1, ge=1, description="Iterations between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept.")
    best: str | None = Field(
        None,
        description="Metric whose best checkpoint is kept too, e.g. reward_unsafe, or -unsafe_rate where less is "
        "better; with evaluation.every also eval/utility/overall, -eval/unsafe_trained and the like.",
    )


class Config(Section):
    """A training run."""

    seed: int = Field(0, ge=0, description="Every random choice of the run follows from it.")
    iterations: int = Field(300, ge=1, description="Rounds of rollout, reward and update.")
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

    def guidance_scale(self, iteration: int) -> float:
        """Guidance of the rollouts and the learner in an iteration."""
        return 1.0 if iteration < self.rollout.unguided_iterations else self.policy.guidance_scale

    def has_kl(self, label: str | None) -> bool:
        """Whether a group with this prompt label carries the KL term."""
        return self.learner.kl_weight > 0 and (self.learner.kl_on == "all" or label == "safe")

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
        return self


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, validate.

    Raises:
        UserError: the file, an override or a value is wrong; the message names field, value and fix.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"CONFIG: no file {path}; give a YAML file such as configs/sandbox.yaml")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override: {override!r} has no '='; write it as section.key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise UserError(f"CONFIG: {path} cannot be read: {' '.join(str(error).split())}") from error
    return validate(values)


def validate(values: Any) -> Config:
    """Build a `Config` from plain data; a mistake becomes one `UserError` line."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(one_line(error)) from error


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data under dotted keys, as overrides name them."""
    rows: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            rows |= flatten(value, f"{prefix}{key}.")
        else:
            rows[prefix + key] = value
    return rows


def one_line(error: pydantic.ValidationError, model: type[BaseModel] = Config) -> str:
    """The first mistake in plain data for `model`, as one line with field, value and fix."""
    first = error.errors()[0]
    # Members of a union appear in `loc` under their type's name.
    hidden = ("literal", "AnchorsConfig", "Elastic", "constrained-int", "int")
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(hidden))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return (message if not field or message.startswith(field) else f"{field}: {message}") + more
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; close to it: {_close_keys(field, model)}{more}"
    if first["type"] == "string_pattern_mismatch":
        return f"{field}: {first['input']!r}: no such device; use cpu, cuda or cuda:N{more}"
    return f"{field}: {first['input']!r}: {first['msg'].lower()}{more}"


def _close_keys(field: str, model: type[BaseModel]) -> str:
    import difflib

    keys = [key for key, _ in describe(model)]
    return ", ".join(difflib.get_close_matches(field, keys, n=3, cutoff=0.4)) or "none"


def describe(model: type[BaseModel] = Config, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and description of every field."""
    rows: list[tuple[str, str]] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            rows += describe(annotation, f"{key}.")
        else:
            rows.append((key, field.description or ""))
    return rows
