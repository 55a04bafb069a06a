"""What a run will do, before it starts: counts, FLOPs, bytes moved, memory of each actor, and the bottleneck."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, cast

import torch

from sdr1.base.errors import UserError
from sdr1.config.training import Config
from sdr1.config.workers import bounds
from sdr1.planning.costs import cuda_norms, measure, parameter_bytes
from sdr1.planning.counts import Counts, count, guided
from sdr1.planning.record import Actor, Assumed, Bottleneck, Counted, Flops, Plan, Prompts, Shared
from sdr1.planning.shapes import FakeModules, dtype, fake_modules
from sdr1.prompts import labels as prompt_labels
from sdr1.prompts import stream as prompts

FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 5e13}
"""Assumed speed of one CPU thread and of one GPU: they only weigh devices against each other."""
PROCESS_BYTES = {"cpu": 9 * 10**8, "cuda": 500 * 2**20}
"""Of a process on the CPU once torch, diffusers, transformers and Ray are imported, measured on x86-64: 0.53 GB of its
own and 0.37 GB of mapped libraries. On a GPU context and kernels."""


def plan(config: Config) -> Plan:
    """Everything as plain data for JSON.

    Raises:
        UserError: the prompts or the models' configs cannot be read.
    """
    made = fake_modules(config)
    counts = count(config)
    flops, peaks = _flops(config, made, counts)
    memory = _memory(config, made, peaks)
    assumed: Assumed = {"assumed": made.assumed} if made.assumed else {}
    shared: Shared = {"memory_on_the_one_gpu": _on_gpus(memory)} if config.run.placement == "shared" else {}
    return {
        **assumed,
        "prompts": _prompts(config),
        "iterations": config.iterations,
        **_counts(config, counts),
        "flops": flops,
        "bytes_per_iteration": _bytes(config, made, counts),
        "memory": memory,
        **shared,
        "bottleneck": _bottleneck(config, flops, counts),
    }


def _prompts(config: Config) -> Prompts:
    sources = prompts.sources(config)
    try:
        read = [prompt_labels.read(source) for source in sources]
    except UserError as error:
        # A preset names a file that its user has yet to bring.
        return {"count": None, "missing": str(error)}
    lists = [each for each, _ in read]
    found = [prompt for each in lists for prompt in each]
    labels = [prompt.label for prompt in found]
    result: Prompts = {
        "count": len(found),
        "skipped": sum(len(file.skipped) for _, file in read if file),
        "safe": labels.count("safe"),
        "unsafe": labels.count("unsafe"),
        "unlabelled": labels.count(None),
        "epochs": config.iterations * config.prompts.per_iteration / len(found),
    }
    # Labels by score are known when the encoder's weights are.
    if all(source.label != "score" for source in sources):
        stream = prompts.PromptStream(lists, config)
        result["pools"] = [
            {
                "count": len(pool),
                "groups_per_iteration": groups,
                "epochs": config.iterations * groups / len(pool),
            }
            for pool, groups in stream.pools
        ]
    return result


def _counts(config: Config, counts: Counts) -> Counted:
    return {
        "groups": {
            "per_iteration": counts.groups,
            "size": config.rollout.group_size,
            "images_per_iteration": counts.images,
        },
        "updates": {
            "per_iteration": counts.updates,
            "total": counts.updates * config.iterations,
            "groups": config.groups_per_update,
            "transitions": counts.parts // counts.updates,
        },
        "unet_evaluations_per_image": {
            "rollout": counts.rollout / counts.images,
            "reference": counts.reference / counts.images,
            "learner": counts.learner / counts.images,
            "total": counts.total / counts.images,
        },
    }


def _flops(config: Config, made: FakeModules, counts: Counts) -> tuple[Flops, dict[str, int]]:
    """Per image, by the role that spends them; and by role the bytes that its call needs beside weights."""
    group = config.rollout.group_size
    sampled_at_once = group * guided(config)
    # Passes are of near-equal size: the largest holds so many parts. Only GRPO trains the guided prediction.
    micro = math.ceil(counts.parts / (counts.passes * config.learner.ranks))
    trained_at_once = micro * (guided(config) if config.learner.objective == "grpo" else 1)
    length = made.text_encoder.config.max_position_embeddings
    autocast: Any = contextlib.nullcontext
    if config.policy.precision != "float32":
        autocast = lambda: torch.autocast("cpu", dtype=dtype(config.policy))  # noqa: E731

    def inputs(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        states = torch.empty(size, length, made.unet.config.cross_attention_dim)
        return torch.empty(size, *made.latent), torch.zeros(size, dtype=torch.long), states

    def evaluate(size: int) -> torch.Tensor:
        latents, times, states = inputs(size)
        with autocast():
            return made.unet(latents, times, encoder_hidden_states=states).sample.float()

    def cost(call: Callable[[], object], device: str) -> tuple[int, int]:
        cuda = device != "cpu"
        half = config.policy.precision != "float32"
        with cuda_norms(made.unet) if half and cuda else contextlib.nullcontext():
            return measure(call, cuda)

    with made.mode:
        with torch.no_grad():
            drawn_on = config.rollout.device
            forward, sampling = cost(lambda: evaluate(sampled_at_once), drawn_on)
            slices = 1 if config.policy.vae_slicing else group
            latents = torch.empty(slices, *made.latent)
            decode, decoding = cost(lambda: made.vae.decode(latents).sample, drawn_on)
            text, _ = measure(lambda: made.text_encoder(torch.zeros(1, length, dtype=torch.long)))
            batch = min(config.reward.batch, group)
            score, scoring = measure(
                lambda: made.encoder.encode_image(torch.empty(batch, 3, *made.encoder_size))
            )
        # Gradients exist from the second pass on.
        made.unet.train(config.policy.gradient_checkpointing)
        evaluate(1).sum().backward()
        training, learning = cost(lambda: evaluate(trained_at_once).sum().backward(), config.learner.device)
    unet_forward, unet_training = forward / sampled_at_once, training / trained_at_once
    reference = counts.reference / counts.images * unet_forward
    sampled = counts.rollout / counts.images * unet_forward + decode / slices
    learned = counts.learner / counts.images * unet_training
    flops: Flops = {
        "unet_evaluation": unet_forward,
        "unet_evaluation_with_backward": unet_training,
        "text_encoding": text,
        "per_image": {
            "rollout": sampled + reference,
            "reward": score / batch,
            "learner": learned,
        },
        "per_iteration": counts.images * (sampled + reference + score / batch + learned),
    }
    return flops, {"rollout": max(sampling, decoding), "reward": scoring, "learner": learning}


def _bytes(config: Config, made: FakeModules, counts: Counts) -> dict[str, int]:
    """Between actors, once an iteration; each node pulls the weights once, here every worker is on its own."""
    images, trained = counts.images, config.trained_timesteps
    state = math.prod(made.latent) * 4
    published = _trainable(made)
    moved = {
        "weights_published": published,
        "weights_pulled": published * bounds(config.rollout.workers).max,
        "images": images * made.pixels[0] * made.pixels[1] * 3,
    }
    reference = round(images * state * trained * counts.reference / counts.learner)
    if config.learner.objective == "grpo":
        moved |= {
            "trajectories": images * ((trained + 1) * state + trained * 4),
            "reference_means": reference,
        }
    else:
        moved |= {
            "final_latents": images * state,
            "reference_predictions": reference,
            "old_predictions": images * state * trained * config.off_policy,
        }
    return {**moved, "total": sum(moved.values())}


def _trainable(made: FakeModules) -> int:
    return sum(p.numel() * p.element_size() for p in made.unet.parameters() if p.requires_grad)


def _memory(config: Config, made: FakeModules, peaks: dict[str, int]) -> dict[str, Actor]:
    """Bytes of one actor of each role at its peak, on its device, by what they are for.

    The peak is that of the start or of the work, whichever is more; freed memory is used again.

    - `start`: what it needs beyond the work. Parameters that are trained move into one flat buffer (`sdr1.models.flat`), and
      until the last has moved both are there.
    - `optimizer`: AdamW's two moments. On a GPU its step works on all parameters at once and holds one more set of
      temporaries, when the activations are gone.
    - `ema`: the moving average of the trained weights.
    - `activations`: the most that a pass makes; the last pass's hold the gradients that it adds to `gradients`.
    - `published`: on the CPU Ray's shared memory, where the learner writes its weights and rollout actors map them; a
      process is billed for it, the node holds it once. For a GPU it is the host's.
    """
    trainable = _trainable(made)
    pipeline = sum(parameter_bytes(part) for part in (made.unet, made.vae, made.text_encoder))
    copies = config.policy.trainable == "full" and config.learner.kl_weight > 0
    stepping = trainable if config.learner.device != "cpu" else 0
    parts = {
        "rollout": {
            "weights": pipeline,
            "reference": parameter_bytes(made.unet) if copies else 0,
            "activations": peaks["rollout"],
        },
        "reward": {"weights": parameter_bytes(made.encoder), "activations": peaks["reward"]},
        "learner": {
            "weights": pipeline,
            "optimizer": 2 * trainable,
            "ema": trainable if config.learner.ema_decay else 0,
            "gradients": trainable,
            "activations": max(peaks["learner"], stepping),
        },
    }
    result: dict[str, Actor] = {}
    for role, sizes in parts.items():
        device = getattr(config, role).device
        kind = device.split(":")[0]
        sizes["process"] = PROCESS_BYTES[kind]
        if role != "reward":
            sizes["published"] = trainable if kind == "cpu" else 0
            work = sum(
                sizes[part]
                for part in ("optimizer", "gradients", "activations", "published")
                if part in sizes
            )
            sizes["start"] = max(0, trainable - work)
        result[role] = cast(
            Actor,
            {"device": device, "actors": _actors(config)[role], **sizes, "total": sum(sizes.values())},
        )
    return result


def _on_gpus(memory: dict[str, Actor]) -> int:
    return sum(each["actors"] * each["total"] for each in memory.values() if each["device"] != "cpu")


def _actors(config: Config) -> dict[str, int]:
    return {
        "rollout": bounds(config.rollout.workers).max,
        "reward": bounds(config.reward.workers).max,
        "learner": config.learner.ranks,
    }


def _bottleneck(config: Config, flops: Flops, counts: Counts) -> Bottleneck:
    """The role that the others wait for, and each role's busy share while it sets the pace."""
    seconds = {}
    for role, actors in _actors(config).items():
        device = getattr(config, role).device.split(":")[0]
        speed = FLOPS_PER_SECOND[device] * (config.run.threads if device == "cpu" else 1)
        seconds[role] = counts.images * flops["per_image"][role] / (speed * actors)
    slowest = max(seconds, key=lambda role: seconds[role])
    return {
        "part": slowest,
        "busy": {role: each / seconds[slowest] for role, each in seconds.items()},
        "rollout_workers_to_keep_the_learner_busy": max(
            1, round(seconds["rollout"] * _actors(config)["rollout"] / seconds["learner"])
        ),
    }


def lines(found: Plan) -> list[str]:
    """The plan for people."""
    evaluations, flops, moved = (
        found["unet_evaluations_per_image"],
        found["flops"],
        found["bytes_per_iteration"],
    )
    known, groups, updates = found["prompts"], found["groups"], found["updates"]
    rows = [f"note         {found['assumed']}"] if "assumed" in found else []
    if known["count"] is None:
        rows.append(f"prompts      {known['missing']}")
    else:
        rows.append(
            f"prompts      {known['count']:,}: {known['safe']:,} safe, {known['unsafe']:,} unsafe, "
            f"{known['unlabelled']:,} without label; {known['epochs']:.1f} epochs"
            + (f"; {known['skipped']:,} rows without a prompt skipped" if known["skipped"] else "")
        )
        pools = known.get("pools", ())
        rows += [
            f"             {pool['count']:,} of them in {pool['groups_per_iteration']} groups an iteration, "
            f"{pool['epochs']:.1f} epochs"
            for pool in (pools if len(pools) > 1 else ())
        ]
    rows += [
        f"groups       {groups['per_iteration']} x {groups['size']} = {groups['images_per_iteration']:,} images an "
        f"iteration, {found['iterations']:,} iterations",
        f"updates      {updates['per_iteration']} an iteration of {updates['groups']} groups, {updates['transitions']:,} "
        f"pairs of sample and timestep; {updates['total']:,} in all",
        f"UNet         evaluations an image: rollout {evaluations['rollout']:g}, reference "
        f"{evaluations['reference']:g}, learner {evaluations['learner']:g} with backward; {evaluations['total']:g} where "
        "a backward pass is two",
        "FLOPs        an image: "
        + ", ".join(f"{r} {n:.3g}" for r, n in flops["per_image"].items())
        + f"; an iteration {flops['per_iteration']:.3g}",
        "moved        an iteration: "
        + ", ".join(f"{k.replace('_', ' ')} {_size(n)}" for k, n in moved.items()),
    ]
    for role, sizes in found["memory"].items():
        parts = ", ".join(
            f"{k} {_size(n)}"
            for k, n in cast(dict[str, Any], sizes).items()
            if k not in ("device", "actors", "total") and n
        )
        rows.append(
            f"memory       {role} on {sizes['device']}, {sizes['actors']} of {_size(sizes['total'])}: {parts}"
        )
    if "memory_on_the_one_gpu" in found:
        rows.append(f"memory       {_size(found['memory_on_the_one_gpu'])} of all that share the one GPU")
    neck = found["bottleneck"]
    busy = ", ".join(f"{role} {share:.0%}" for role, share in neck["busy"].items())
    wanted = neck["rollout_workers_to_keep_the_learner_busy"]
    rows.append(
        f"bottleneck   {neck['part']} (busy: {busy}); about {wanted} rollout workers keep the learner busy"
    )
    return rows


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
