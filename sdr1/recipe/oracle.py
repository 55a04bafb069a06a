"""Stage 2 of the recipe: the oracle, trained on drawn, decoded, blurred and spoiled pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sdr1.recipe import vae as autoencoder
from sdr1.recipe.common import save_tensors, train, warmup_then_linear
from sdr1.recipe.data import generator, test_set, to_bytes, to_unit, training_set
from sdr1.recipe.spoil import spoiled
from sdr1.sandbox.oracle import CELL, CELLS, READ, Found, Oracle, OracleNet, coherent
from sdr1.sandbox.world import COLOURS, Scene

STEPS, BATCH, RATE = 5000, 96, 2e-3
DECODED, SPOILT = 16_000, 40_000


def build_oracle(out: Path, work: Path) -> dict[str, float]:
    """Trains and saves `out/oracle.safetensors`; returns the share of scenes read without any error."""
    torch.manual_seed(2)
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    scenes, pictures = training_set()
    decoded = through_vae(vae, pictures[:DECODED], 0.15)
    bad_scenes, bad = spoiled_set(range(SPOILT))
    half = SPOILT // 2
    pool = torch.cat([pictures, decoded, bad[:half], through_vae(vae, bad[half:], 0.15)])
    targets = target_maps([*scenes, *scenes[:DECODED], *bad_scenes])
    starts = (0, len(pictures), len(pictures) + DECODED, len(pool))
    net = OracleNet()

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng = generator(2, step)
        sizes = (BATCH // 4, BATCH // 4, BATCH // 2)
        chosen = torch.cat(
            [torch.randint(low, high, (n,), generator=rng) for low, high, n in zip(starts, starts[1:], sizes)]
        )
        images = to_unit(pool[chosen])
        soft = torch.rand(BATCH, generator=rng) < 0.4
        images[soft] = blur(images[soft], 0.4 + 0.5 * float(torch.rand((), generator=rng)))
        images = dented(images, rng)
        images = images + 0.04 * torch.randn(images.shape, generator=rng)
        return dense_losses(net(images), {name: target[chosen] for name, target in targets.items()})

    groups = [{"params": list(net.parameters()), "lr": RATE}]
    train("oracle", net, groups, loss_at, STEPS, warmup_then_linear(0.03, 0.4), work)
    save_tensors(
        {name: tensor.half() for name, tensor in net.state_dict().items()}, out / "oracle.safetensors"
    )
    return measure(Oracle.load(out / "oracle.safetensors"), vae)


def measure(oracle: Oracle, vae: AutoencoderKL) -> dict[str, float]:
    """Shares of the test scenes that are read exactly: as drawn, after the VAE, and blurred; and of whole and of
    spoiled scenes, drawn and after the VAE, that are rightly called coherent or not."""
    scenes, pictures = test_set()
    bad = spoiled_set(range(SPOILT, SPOILT + len(scenes)))[1]
    return {
        "drawn": exact_share(oracle, scenes, pictures),
        "decoded": exact_share(oracle, scenes, through_vae(vae, pictures)),
        "blurred": exact_share(oracle, scenes, to_bytes(blur(to_unit(pictures), 0.9))),
        "whole_coherent_drawn": coherent_share(oracle, pictures),
        "whole_coherent_decoded": coherent_share(oracle, through_vae(vae, pictures)),
        "spoiled_incoherent_drawn": 1 - coherent_share(oracle, bad),
        "spoiled_incoherent_decoded": 1 - coherent_share(oracle, through_vae(vae, bad)),
        "parameters": sum(p.numel() for p in oracle.net.parameters()),
    }


def exact_share(oracle: Oracle, scenes: list[Scene], pictures: torch.Tensor) -> float:
    """The share of uint8 pictures (N, 3, 32, 32) in which exactly the scene's things are found in their places."""
    read = oracle.read(pictures.permute(0, 2, 3, 1).numpy())
    return sum(is_exact(things, scene) for things, scene in zip(read, scenes)) / len(scenes)


def coherent_share(oracle: Oracle, pictures: torch.Tensor) -> float:
    """The share of uint8 pictures (N, 3, 32, 32) that the oracle calls coherent."""
    read = oracle.read(pictures.permute(0, 2, 3, 1).numpy())
    return sum(map(coherent, read)) / len(read)


def spoiled_set(seeds: range) -> tuple[list[Scene], torch.Tensor]:
    """Scenes with something spoiled, as they should be read, and their pictures uint8 (N, 3, 32, 32)."""
    drawn = [spoiled(seed) for seed in seeds]
    images = torch.from_numpy(np.stack([image for _, image in drawn]))
    return [scene for scene, _ in drawn], images.permute(0, 3, 1, 2)


def is_exact(things: list[Found], scene: Scene) -> bool:
    """Whether the things are the scene's: same number, each of its kind and colour within 3 pixels of its centre."""
    if len(things) != len(scene.things):
        return False
    return all(
        any(
            thing.kind == true.kind
            and thing.colour == true.colour
            and np.hypot(thing.x - true.x, thing.y - true.y) < 3
            for thing in things
        )
        for true in scene.things
    )


def through_vae(vae: AutoencoderKL, pictures: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """Encodes and decodes uint8 pictures (N, 3, 32, 32), with latent noise of the given deviation between."""
    latents = autoencoder.encode(vae, pictures)
    if noise:
        latents = latents + noise * torch.randn(latents.shape, generator=generator(2, 1_000_000))
    return to_bytes(autoencoder.decode(vae, latents))


def blur(pictures: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian blur of float pictures (N, 3, H, W), deviation in pixels."""
    reach = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(reach**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1)
    padded = F.pad(pictures, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None, :], groups=3), kernel[:, :, :, None], groups=3)


def dented(pictures: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Float pictures (N, 3, H, W), smoothly out of shape by about half a pixel: a ring with an oval hole is a ring."""
    count, _, height, width = pictures.shape
    coarse = torch.randn((count, 2, 4, 4), generator=rng) * 0.45
    shift = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    straight = F.affine_grid(torch.eye(2, 3).expand(count, -1, -1), [count, 3, height, width], False)
    pixel = torch.tensor([2 / width, 2 / height])
    grid = straight + shift.permute(0, 2, 3, 1) * pixel
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def target_maps(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Training targets of N scenes: "heat" (N, 13, 8, 8) with a soft peak at every centre, "colour" (N, 8, 8) with
    -1 where no shape's centre is near, "offset" (N, 2, 8, 8) in cells and "near" (N, 8, 8), where it counts."""
    count = len(scenes)
    heat = np.zeros((count, len(READ), CELLS, CELLS), np.float32)
    colour = np.full((count, CELLS, CELLS), -1, np.int64)
    offset = np.zeros((count, 2, CELLS, CELLS), np.float32)
    near = np.zeros((count, CELLS, CELLS), np.float32)
    middle = np.arange(CELLS) + 0.5
    names = list(COLOURS)
    for n, scene in enumerate(scenes):
        for thing in scene.things:
            dx, dy = (thing.x / CELL - middle)[None, :], (thing.y / CELL - middle)[:, None]
            row, column = min(int(thing.y / CELL), CELLS - 1), min(int(thing.x / CELL), CELLS - 1)
            peak = np.exp(-((dx**2 + dy**2) / (2 * 0.6**2)))
            peak[row, column] = 1.0
            kind = READ.index(thing.kind)
            heat[n, kind] = np.maximum(heat[n, kind], peak)
            here = (dx**2 + dy**2) < 1.5
            near[n][here] = 1
            offset[n, 0][here], offset[n, 1][here] = (dx + 0 * dy)[here], (dy + 0 * dx)[here]
            if thing.colour is not None:
                colour[n][here] = names.index(thing.colour)
    return {
        "heat": torch.from_numpy(heat),
        "colour": torch.from_numpy(colour),
        "offset": torch.from_numpy(offset),
        "near": torch.from_numpy(near),
    }


def dense_losses(maps: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CenterNet's penalty-reduced focal loss on the centres (1904.07850), cross-entropy on colours, L1 on offsets."""
    kinds, colours, offsets = maps.split((len(READ), len(COLOURS), 2), dim=1)
    heat, near = targets["heat"], targets["near"]
    chance = kinds.sigmoid().clamp(1e-5, 1 - 1e-5)
    centre = (heat == 1).float()
    focal = (
        -centre * (1 - chance) ** 2 * chance.log()
        - (1 - centre) * (1 - heat) ** 4 * chance**2 * (1 - chance).log()
    )
    number = centre.sum().clamp(min=1)
    colour = F.cross_entropy(colours, targets["colour"], ignore_index=-1)
    offset = ((offsets - targets["offset"]).abs().sum(1) * near).sum() / near.sum().clamp(min=1)
    heat_loss = focal.sum() / number
    return {
        "loss": heat_loss + 0.5 * colour + 0.5 * offset,
        "heat": heat_loss,
        "colour": colour,
        "offset": offset,
    }
