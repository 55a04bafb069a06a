"""Stage 1 of the recipe: the pipeline's autoencoder, with latents whitened per channel."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from sdr1.base.files import disk_errors
from sdr1.recipe.common import train, warmup_then_linear
from sdr1.recipe.data import generator, test_set, to_unit, training_set

STEPS, BATCH, RATE = 3200, 64, 2e-3


def build_vae(out: Path, work: Path) -> dict[str, float]:
    """Trains and saves the autoencoder under `out/pipeline/vae`; returns its measured quality."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=32,
        scaling_factor=1.0,
        force_upcast=False,
    )
    pictures = training_set()[1]

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng = generator(1, step)
        clean = to_unit(pictures[torch.randint(len(pictures), (BATCH,), generator=rng)])
        clean = clean.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(clean).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        mse, mae = F.mse_loss(decoded, clean), F.l1_loss(decoded, clean)
        kl = posterior.kl().mean() / clean[0].numel()
        return {"loss": mse + 0.1 * mae + 1e-4 * kl, "mse": mse, "kl": kl}

    vae.to(memory_format=torch.channels_last)
    groups = [{"params": list(vae.parameters()), "lr": RATE}]
    train("vae", vae, groups, loss_at, STEPS, warmup_then_linear(0.03, 0.5), work)
    vae.eval()
    whiten(vae, encode(vae, pictures[:8000]))
    with disk_errors(out / "pipeline" / "vae"):
        vae.save_pretrained(out / "pipeline" / "vae")
    unseen = test_set()[1]
    latents = encode(vae, unseen)
    error = F.mse_loss(decode(vae, latents), to_unit(unseen)).item()
    return {
        "psnr_db": -10 * torch.tensor(error / 4).log10().item(),
        "latent_mean": latents.mean().item(),
        "latent_std": latents.std().item(),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Folds the inverse of the latents' channel mean and deviation into quant_conv, and the mean and deviation
    into post_quant_conv, so that the pipeline's scaling factor is 1. `latents` are float (N, 4, 8, 8)."""
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Means of the latents, float (N, 4, 8, 8), of uint8 pictures (N, 3, 32, 32)."""
    return torch.cat([vae.encode(to_unit(chunk)).latent_dist.mean for chunk in pictures.split(250)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Float pictures (N, 3, 32, 32) in [-1, 1] of latents (N, 4, 8, 8)."""
    return torch.cat([vae.decode(chunk).sample.clamp(-1, 1) for chunk in latents.split(250)])
