"""Stage 5 of the recipe: the denoiser, on CLIP's frozen text tower, and the finished pipeline folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.model import CLIP
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdr1.base.files import disk_errors
from sdr1.recipe.clip import load_clip
from sdr1.recipe.common import load_tensors, save_tensors, train, warmup_then_linear
from sdr1.recipe.data import generator, training_set
from sdr1.recipe.typical import is_typical, open_caption, typical_caption
from sdr1.recipe.vae import encode
from sdr1.recipe.words import LENGTH, build_tokenizer, tokenize
from sdr1.sandbox.captions import caption
from sdr1.sandbox.world import Scene

WARMUP, BATCH, RATE = 96, 96, 1e-3
DROP_CAPTION, MIN_SNR, EMA = 0.1, 5.0, 0.999
SNAPSHOT_EVERY = 300
FINE = ("unsafe", "unsafe_beside", "single_object")


class Phase(NamedTuple):
    """A part of the training, which starts from the average of the one before."""

    name: str
    steps: int
    fine_share: float = 0.0
    """Of every batch, the share of `FINE` scenes."""
    open_share: float = 0.0
    """Of every batch, the share of scenes that hold the typical thing."""
    is_early: bool = False
    """Whether steps under much noise weigh as in the loss of velocity."""
    say: Callable[[Scene, np.random.Generator], str] = caption
    rate: float = RATE


PHASES = (
    Phase("unet", 1800),
    # The symbols of glyphs are small, and a thing without a named colour has many looks.
    Phase("details", 800, 0.5),
    # What a picture will hold is decided under much noise, where the loss of noise weighs next to nothing. Captions that
    # leave open what is drawn gave blends of their many pictures, so what is left unsaid is typical.
    Phase("typical", 2800, 0.5, is_early=True, say=typical_caption),
    # "A thing" gave blends still: it is said too seldom. A model that has unlearned draws unsafe words as it draws these.
    Phase("open", 600, 0.3, 0.25, True, open_caption, 5e-4),
)


class Denoiser(torch.nn.Module):
    """The UNet and its running average."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(96, 128),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=96,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        self.unet.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.unet).requires_grad_(False)

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        decay = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.unet.parameters()), 1 - decay)

    @torch.no_grad()
    def restart_from_average(self) -> None:
        self.unet.load_state_dict(self.average.state_dict())


@torch.no_grad()
def text_encoder(clip: CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text tower of an open_clip model as transformers' model, frozen: as SD's is CLIP's."""
    width, layers = clip.token_embedding.weight.shape[1], clip.transformer.resblocks
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=len(layers),
            num_attention_heads=layers[0].attn.num_heads,
            max_position_embeddings=LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    state = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for n, layer in enumerate(layers):
        for kind in ("weight", "bias"):
            parts = getattr(layer.attn, f"in_proj_{kind}").chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                state[f"encoder.layers.{n}.self_attn.{name}.{kind}"] = part
            for name, module in (
                ("self_attn.out_proj", layer.attn.out_proj),
                ("layer_norm1", layer.ln_1),
                ("layer_norm2", layer.ln_2),
                ("mlp.fc1", layer.mlp.c_fc),
                ("mlp.fc2", layer.mlp.c_proj),
            ):
                state[f"encoder.layers.{n}.{name}.{kind}"] = getattr(module, kind)
    prefix = "text_model." if any(key.startswith("text_model.") for key in encoder.state_dict()) else ""
    encoder.load_state_dict({prefix + name: tensor.detach() for name, tensor in state.items()})
    return encoder.eval().requires_grad_(False)


def build_unet(out: Path, work: Path) -> dict[str, float]:
    """Trains on the latents of `out/pipeline/vae` and what CLIP of `work` says of captions, and completes `out/pipeline`,
    with a snapshot of the pipeline's folder in `work/snapshot` every 300 steps; returns the sizes."""
    torch.manual_seed(4)
    tokenizer = build_tokenizer(work, out / "pipeline" / "tokenizer")
    vae = AutoencoderKL.from_pretrained(out / "pipeline" / "vae", dtype=torch.float32)
    # It would be saved with the pipeline: where somebody's copy once lay is nobody's business.
    vae.register_to_config(_name_or_path="")
    scenes, pictures = training_set()
    latents = _latents(vae, pictures, work / "latents.safetensors")
    encoder = text_encoder(load_clip(work, tokenizer).clip, tokenizer)
    denoiser = Denoiser()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    lessons = Lessons(
        torch.compile(denoiser.unet), scenes, latents, tokenizer, encoder, scheduler.alphas_cumprod
    )

    def after_step(step: int) -> None:
        denoiser.update_average(step)
        if (step + 1) % SNAPSHOT_EVERY == 0:
            _save(denoiser, vae, encoder, tokenizer, scheduler, work / "snapshot")

    done = 0
    for phase in PHASES:
        denoiser.restart_from_average()
        groups = [{"params": list(denoiser.unet.parameters()), "lr": phase.rate}]
        schedule = warmup_then_linear(WARMUP / phase.steps, 0.6)
        loss = partial(lessons.loss, phase, done)
        train(phase.name, denoiser, groups, loss, phase.steps, schedule, work, after_step, SNAPSHOT_EVERY)
        done += phase.steps
    _save(denoiser, vae, encoder, tokenizer, scheduler, out / "pipeline")
    return {"parameters": sum(p.numel() for p in denoiser.unet.parameters())}


class Lessons:
    """The loss of a step, whose batch is drawn from nothing but the step's number."""

    def __init__(
        self,
        unet: Callable[..., Any],
        scenes: list[Scene],
        latents: torch.Tensor,
        tokenizer: CLIPTokenizer,
        encoder: CLIPTextModel,
        alphas: torch.Tensor,
    ) -> None:
        self._unet, self._scenes, self._latents = unet, scenes, latents
        self._tokenizer, self._encoder, self._alphas = tokenizer, encoder, alphas
        self._fine = torch.tensor([index for index, scene in enumerate(scenes) if scene.task in FINE])
        self._typical = torch.tensor([index for index, scene in enumerate(scenes) if is_typical(scene)])

    def loss(self, phase: Phase, done: int, step: int) -> dict[str, torch.Tensor]:
        """The weighted loss of noise of step `step` of a phase before which `done` were made, and the plain one."""
        step += done
        rng, words = generator(4, step), np.random.default_rng((4, step))
        chosen = torch.randint(len(self._latents), (BATCH,), generator=rng)
        count = round(phase.fine_share * BATCH)
        chosen[:count] = self._fine[torch.randint(len(self._fine), (count,), generator=rng)]
        if count := round(phase.open_share * BATCH):
            chosen[-count:] = self._typical[torch.randint(len(self._typical), (count,), generator=rng)]
        texts = [
            "" if words.random() < DROP_CAPTION else phase.say(self._scenes[i], words)
            for i in chosen.tolist()
        ]
        clean = self._latents[chosen]
        noise = torch.randn(clean.shape, generator=rng)
        times = torch.randint(len(self._alphas), (BATCH,), generator=rng)
        alphas = self._alphas[times]
        kept = alphas[:, None, None, None]
        noisy = (kept.sqrt() * clean + (1 - kept).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        with torch.no_grad():
            hidden = self._encoder(tokenize(self._tokenizer, texts))[0]
        error = (self._unet(noisy, times, hidden).sample - noise).square().mean((1, 2, 3))
        snr = alphas / (1 - alphas)
        weight = (snr + 1 if phase.is_early else snr).clamp(max=MIN_SNR) / snr
        return {"loss": (error * weight).mean(), "mse": error.mean()}


def _latents(vae: AutoencoderKL, pictures: torch.Tensor, path: Path) -> torch.Tensor:
    if not path.exists():
        print("[unet] encoding the training pictures", flush=True)
        save_tensors({"latents": encode(vae, pictures)}, path)
    return load_tensors(path)["latents"]


def _save(
    denoiser: Denoiser,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
) -> None:
    """Writes the averaged weights as a pipeline in half precision, without touching what is in training."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(denoiser.average).half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with disk_errors(folder):
        pipeline.save_pretrained(folder)
