"""The one description of a training run."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from sdr1.base.checked import checked
from sdr1.base.plain_data import shown
from sdr1.base.section import MOST_SECONDS, MOST_SEED, Device, Section, refuse_set
from sdr1.config.forward import ForwardConfig
from sdr1.config.policy import PolicyConfig
from sdr1.config.prompts import PromptsConfig
from sdr1.config.rewards import RewardConfig
from sdr1.config.workers import Workers, bounds

MOST_ITERATIONS = 10_000_000
"""Above this a number is a slip of the hand, not a wish."""
Beta = Annotated[FiniteFloat, Field(ge=0, lt=1)]


class RunConfig(Section):
    directory: Path = Field(Path("outputs/run"), description="Folder of everything this run writes.")
    storage: str | None = Field(
        None,
        description="Address of a copy of the checkpoints and outputs, e.g. s3://bucket/run, from which the run goes on on "
        "any machine; whatever fsspec knows. Credentials and options are fsspec's: the address holds none.",
    )
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

    # Nothing of the values is quoted where a person may have put a password into them.
    @field_validator("directory", mode="before")
    @classmethod
    def _a_folder(cls, value: Any) -> Any:
        scheme, is_address, _ = str(value).partition("://")
        if is_address:
            raise ValueError(
                f"run.directory: {shown(scheme)[1:-1]}://...: is an address; set run.storage to it, and give a local folder here"
            )
        return value

    @field_validator("storage")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, _, rest = value.partition("://")
        if any(mark in value for mark in ("@", "?", "#", "::")):
            raise ValueError(
                "run.storage: credentials or options in an address, which logs show; leave them out of it, and give them as "
                "environment variables of the store's library"
            )
        if not re.fullmatch(r"[a-z][a-z0-9]*", scheme) or not rest.strip("/") or not value.isprintable():
            raise ValueError(f"run.storage: {shown(value)}: is no address; write it as s3://bucket/folder")
        return value.rstrip("/")

    @property
    def name(self) -> str:
        """What people know the run by: its folder's name, or of a folder called `run` that of the one around it."""
        return self.directory.parent.name if self.directory.name == "run" else self.directory.name


class RolloutConfig(Section):
    workers: Workers = Field(1, description="Rollout actors: a number, or {min, max} for an elastic fleet.")
    weights: Literal["trained", "ema"] = Field(
        "trained",
        description="Weights that draw: those that are trained, or their average (learner.ema_decay), an old policy that "
        "lags behind.",
    )
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


class LearnerConfig(Section):
    objective: Literal["grpo", "forward"] = Field(
        "grpo",
        description="What turns scored groups into gradients. `grpo`: the likelihood ratio of the reverse chain's noisy "
        "steps. `forward`: final latents are noised again, and their denoising error is moved by the advantage; any "
        "policy.solver draws them.",
    )
    forward: ForwardConfig = Field(ForwardConfig(), description="Options of `objective: forward`.")
    learning_rate: FiniteFloat = Field(1e-5, gt=0, le=1, description="AdamW learning rate.")
    decay_start: FiniteFloat = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the run after which the learning rate falls exponentially to a tenth at its end; 1 keeps it.",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW betas.")
    weight_decay: FiniteFloat = Field(1e-4, ge=0, le=10, description="AdamW weight decay.")
    ema_decay: FiniteFloat = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the trained weights, an update at a time, rising from 2/11 to this: "
        "(1 + updates) / (10 + updates). The average is what is evaluated, saved and exported. 0: none.",
    )
    max_grad_norm: FiniteFloat = Field(1.0, ge=1e-6, le=1e6, description="Gradient norm is clipped to this.")
    clip_range: FiniteFloat = Field(
        1e-4,
        ge=1e-9,
        le=1,
        description="c of GRPO's clipped ratio [1-c, 1+c]; log-probs are means over dimensions.",
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
        0.0,
        ge=0,
        le=1e6,
        description="beta of the KL to the base model; 0 evaluates no reference. Of `forward` it is the weighted squared "
        "distance of the two predictions.",
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
        description="Pairs of a sample and a timestep of one forward and backward pass.",
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


with warnings.catch_warnings():
    # The class of all models has a method of this name, for virtual subclasses, which no section is asked for.
    warnings.filterwarnings("ignore", message='Field name "register"')

    class TrackingConfig(Section):
        enabled: bool = Field(
            True, description="Log to MLflow; MLFLOW_TRACKING_URI picks a server, default is a local file."
        )
        experiment: str = Field("sdr1", description="MLflow experiment.")
        register: str | None = Field(
            None,
            pattern=r"^[^/:]+$",
            description="Name in MLflow's model registry, of which the trained pipeline becomes a new version.",
        )
        wait_seconds: FiniteFloat = Field(
            60.0,
            ge=0,
            le=MOST_SECONDS,
            description="How long the end of a run waits for an MLflow server that is away.",
        )
        images_every: int = Field(
            10, ge=1, le=MOST_ITERATIONS, description="Iterations between sample grids."
        )


class CheckpointConfig(Section):
    every: int = Field(1, ge=1, le=MOST_ITERATIONS, description="Iterations between checkpoints.")
    keep: int = Field(2, ge=1, le=MOST_ITERATIONS, description="Newest checkpoints kept.")
    best: str | None = Field(
        None,
        description="Metric whose best checkpoint is kept too, e.g. reward_unsafe, or -unsafe_rate where less is "
        "better; with evaluation.every also eval/utility/overall, -eval/unsafe_trained and the like.",
    )


class StopRule(Section):
    metric: str = Field(
        description="A metric of `metrics.jsonl`, e.g. kl, reward_std_unsafe, eval/utility/overall."
    )
    above: FiniteFloat | None = Field(
        None, description="The rule holds while the metric is larger than this."
    )
    below: FiniteFloat | None = Field(
        None, description="The rule holds while the metric is smaller than this."
    )
    iterations: int = Field(
        1,
        ge=1,
        le=MOST_ITERATIONS,
        description="Values in a row for which it has to hold; an iteration without the metric is passed over.",
    )

    @model_validator(mode="after")
    def _one_bound(self) -> StopRule:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"{self.metric}: give one of `above` and `below`, and not the other")
        return self

    def __str__(self) -> str:
        bound = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"{self.metric} {bound} for {self.iterations} in a row"


class StopConfig(Section):
    when: tuple[StopRule, ...] = Field(
        (),
        description="Rules that end the run early, each {metric, above or below, iterations}. With checkpoint.best "
        "`model/` is then of the best checkpoint, else of the last iteration.",
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
    stop: StopConfig = StopConfig()

    @property
    def groups_per_update(self) -> int:
        return self.learner.groups_per_update or self.prompts.per_iteration

    @property
    def trained_timesteps(self) -> int:
        """Of one sample: GRPO's noisy steps, or the timesteps that a final latent is noised to."""
        grpo = self.learner.objective == "grpo"
        return len(self.policy.window) if grpo else self.learner.forward.timesteps

    @property
    def off_policy(self) -> bool:
        """Whether groups are learned from by other weights than those that drew them."""
        rollout = self.rollout
        several_updates = self.groups_per_update < self.prompts.per_iteration
        return several_updates or rollout.max_staleness > 0 or rollout.weights == "ema"

    def has_kl(self, label: str | None) -> bool:
        """Whether a group with this prompt label carries the KL term."""
        return self.learner.kl_weight > 0 and (self.learner.kl_on == "all" or label == "safe")

    @property
    def named_metrics(self) -> list[tuple[str, str]]:
        """Fields that name a metric, and the metric."""
        best = self.checkpoint.best
        return [
            *([] if best is None else [("checkpoint.best", best.removeprefix("-"))]),
            *((f"stop.when.{n}.metric", rule.metric) for n, rule in enumerate(self.stop.when)),
        ]

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
    def _nothing_of_another_objective(self) -> Config:
        learner = self.learner
        if learner.objective == "grpo":
            why = "belongs to learner.objective=forward; leave it out, or choose that"
            refuse_set(learner.forward, tuple(ForwardConfig.model_fields), "learner.forward.", why)
            refuse_set(self.policy, ("solver",), "policy.", why)
        else:
            why = f"belongs to learner.objective=grpo; leave it out, or see learner.{learner.objective}"
            refuse_set(learner, ("clip_range",), "learner.", why)
        return self

    @model_validator(mode="after")
    def _an_average_to_draw_with(self) -> Config:
        if self.rollout.weights == "ema" and not self.learner.ema_decay:
            raise ValueError("rollout.weights: 'ema': there is no average; set learner.ema_decay, e.g. 0.5")
        if self.rollout.weights == "ema" and self.rollout.max_staleness:
            raise ValueError(
                f"rollout.max_staleness: {self.rollout.max_staleness}: rollout.weights=ema draws with the latest average; "
                "set it to 0"
            )
        if self.learner.forward.old_weight and not self.off_policy:
            raise ValueError(
                f"learner.forward.old_weight: {self.learner.forward.old_weight:g}: the weights that draw are those that are "
                "trained, and nothing pulls; set rollout.weights=ema, or learner.groups_per_update"
            )
        return self

    @model_validator(mode="after")
    def _evaluated_when_an_evaluation_is_named(self) -> Config:
        for field, name in self.named_metrics:
            if name.startswith("eval/") and self.evaluation.every == 0:
                raise ValueError(f"{field}: {name} is measured by evaluations; set evaluation.every, e.g. 10")
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
        pairs = self.rollout.group_size * self.trained_timesteps
        if self.learner.ranks > pairs:
            raise ValueError(
                f"learner.ranks: {self.learner.ranks} cannot share the {pairs} parts of a group "
                f"(rollout.group_size {self.rollout.group_size} x {self.trained_timesteps} trained timesteps); use as many "
                "or fewer"
            )
        return self


def validate(values: Any) -> Config:
    """Build a `Config` from plain data; a mistake becomes one `UserError` line."""
    return checked(Config, values)
