"""The record that a plan is: its keys and their types, as `sdr1 plan --json` prints them."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Pool(TypedDict):
    """Prompts of one label that take turns."""

    count: int
    groups_per_iteration: int
    epochs: float


class Prompts(TypedDict):
    """What was read, or with `count` None only why it could not be."""

    count: int | None
    missing: NotRequired[str]
    skipped: NotRequired[int]
    safe: NotRequired[int]
    unsafe: NotRequired[int]
    unlabelled: NotRequired[int]
    epochs: NotRequired[float]
    pools: NotRequired[list[Pool]]


class Groups(TypedDict):
    per_iteration: int
    size: int
    images_per_iteration: int


class Updates(TypedDict):
    per_iteration: int
    total: int
    groups: int
    transitions: int


class Evaluations(TypedDict):
    """Of the UNet, an image; `total` counts a backward pass as two."""

    rollout: float
    reference: float
    learner: float
    total: float


class Flops(TypedDict):
    """`per_image` is by role."""

    unet_evaluation: float
    unet_evaluation_with_backward: float
    text_encoding: int
    per_image: dict[str, float]
    per_iteration: float


class Actor(TypedDict):
    """Bytes of one actor at its peak, by what they are for, and their `total`."""

    device: str
    actors: int
    weights: int
    reference: NotRequired[int]
    optimizer: NotRequired[int]
    ema: NotRequired[int]
    gradients: NotRequired[int]
    activations: int
    process: int
    published: NotRequired[int]
    start: NotRequired[int]
    total: int


class Bottleneck(TypedDict):
    """`busy` is by role, as a share of the time of `part`, for which the others wait."""

    part: str
    busy: dict[str, float]
    rollout_workers_to_keep_the_learner_busy: int


class Counted(TypedDict):
    """The part of a plan that is arithmetic."""

    groups: Groups
    updates: Updates
    unet_evaluations_per_image: Evaluations


class Assumed(TypedDict, total=False):
    """What had to be assumed, where something had to."""

    assumed: str


class Shared(TypedDict, total=False):
    """Of all actors that share one GPU, where they do."""

    memory_on_the_one_gpu: int


class Plan(Counted, Assumed, Shared):
    """Bytes are bytes, FLOPs are multiplications and additions each."""

    prompts: Prompts
    iterations: int
    flops: Flops
    bytes_per_iteration: dict[str, int]
    memory: dict[str, Actor]
    bottleneck: Bottleneck
