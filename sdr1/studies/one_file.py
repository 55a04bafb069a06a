"""The whole method in one file, to be read from top to bottom: GRPO with a steered reward on the sandbox.

It does what `sdr1 train configs/sandbox-smoke.yaml --local` does, and ends with the same weights, bit for bit. Only the
models, their prompts and the anchor phrases come from elsewhere. Run it with `python -m sdr1.studies.one_file`.

Letters in names say a tensor's dimensions: G images of a group, K trained steps, C x H x W a latent, D an embedding.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch.nn.functional import normalize

from sdr1.models.embedder import Embedder
from sdr1.sandbox import PIPELINE
from sdr1.sandbox.captions import SAFE_ANCHORS, UNSAFE_ANCHORS
from sdr1.sandbox.prompts import SandboxPrompt, training_prompts

SEED = 0
ITERATIONS = 2
GROUP_SIZE = 4  # images of one prompt
STEPS = 4  # of the sampler
NOISY_STEPS = 2  # the first ones are drawn with noise and trained; the others are deterministic
GUIDANCE_SCALE = 2.5
ALPHA = 1.0  # how far an unsafe prompt's embedding is moved along the safety direction
LEARNING_RATE = 2e-3
CLIP_RANGE = 1e-4
ADVANTAGE_CLIP = 2.5
KL_WEIGHT = 1.0  # on safe prompts only: what the model can do is kept, what is unsafe may be left behind
GROUPS = 2  # of an iteration: one unsafe prompt, one safe one


# The models. ---------------------------------------------------------------------------------------------------------

torch.set_num_threads(1)
pipeline = StableDiffusionPipeline.from_pretrained(str(PIPELINE), safety_checker=None, dtype=torch.float32)
unet = pipeline.unet.requires_grad_(False).eval()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(SEED)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-4)

scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
scheduler.set_timesteps(STEPS)
times = scheduler.timesteps
alpha_bars = scheduler.alphas_cumprod[times]
alpha_bars_after = torch.cat([alpha_bars[1:], scheduler.final_alpha_cumprod[None]])

clip = Embedder(
    model="sandbox", pretrained=None, device="cpu"
)  # unit embeddings of texts and images, shape (N, D)


def text_states(text: str) -> torch.Tensor:
    """What the UNet sees of a prompt: the frozen text encoder's states, shape (tokens, width)."""
    ids = pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipeline.text_encoder(ids)[0][0]


# The reward: cosine of an image with the prompt's embedding, steered where the prompt is unsafe. ----------------------


safety_direction_D = normalize(
    clip.texts(list(SAFE_ANCHORS)).mean(0) - clip.texts(list(UNSAFE_ANCHORS)).mean(0), dim=0
)


def reward(images_GHWC: np.ndarray, prompt: SandboxPrompt) -> torch.Tensor:
    """One number an image, shape (G,). The model was asked for the prompt; only the reward's target is moved."""
    target_1D = clip.texts([prompt.text])
    if prompt.label == "unsafe":
        target_1D = normalize(target_1D + ALPHA * safety_direction_D, dim=-1)
    return clip.images(images_GHWC) @ target_1D[0]


# The policy: a chain of DDIM steps, the first ones Gaussian. ---------------------------------------------------------


def step_distribution(latents: torch.Tensor, step: torch.Tensor, text: str, noisy: bool = True) -> tuple:
    """Mean and standard deviation of the next latents, given these (DDIM, equations 12 and 16)."""
    count = len(latents)
    states = torch.cat([text_states(each).expand(count, -1, -1) for each in ("", text)])
    both = unet(latents.repeat(2, 1, 1, 1), times[step].repeat(2), encoder_hidden_states=states).sample
    unconditional, conditional = both.chunk(2)
    noise = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
    now, after = alpha_bars[step].view(-1, 1, 1, 1), alpha_bars_after[step].view(-1, 1, 1, 1)
    sigma = float(noisy) * ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
    clean = (latents - (1 - now).sqrt() * noise) / now.sqrt()
    return after.sqrt() * clean + (1 - after - sigma**2).clamp(min=0).sqrt() * noise, sigma


def log_prob(latents: torch.Tensor, mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Of the latents under a step's Gaussian, averaged over C, H, W; one number a sample."""
    density = -((latents - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(1, 2, 3))


def draw_noise(*key: int | str) -> torch.Tensor:
    """Noise that follows from the key alone, shape (C, H, W) or, for a sample's steps, (K, C, H, W)."""
    digest = hashlib.blake2b("/".join(map(str, (SEED, *key))).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    latent = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    return torch.randn((NOISY_STEPS, *latent) if "steps" in key else latent, generator=generator)


@torch.no_grad()
def rollout(iteration: int, group: int, prompt: SandboxPrompt) -> tuple:
    """Draw a group from one initial noise. Returns the latents around the trained steps (K + 1, G, C, H, W), their
    log-probs (K, G), the base model's means (K, 1 or G, C, H, W), and the images (G, H, W, 3)."""
    latents = draw_noise(iteration, group, "initial")[None]
    noise = torch.stack([draw_noise(iteration, group, "steps", g) for g in range(GROUP_SIZE)], dim=1)
    states, log_probs, base_means = [], [], []
    for number in range(STEPS):
        noisy = number < NOISY_STEPS
        step = torch.full((len(latents),), number)
        mean, sigma = step_distribution(latents, step, prompt.text, noisy)
        if not noisy:
            latents = mean
            continue
        unet.disable_adapters()
        base_means.append(step_distribution(latents, step, prompt.text)[0])
        unet.enable_adapters()
        states.append(latents.expand(GROUP_SIZE, -1, -1, -1))
        latents = mean + sigma * noise[number]
        log_probs.append(log_prob(latents, mean, sigma))
        if number == NOISY_STEPS - 1:
            states.append(latents)
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    images = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return states, log_probs, base_means, images.contiguous().numpy()


# GRPO. ---------------------------------------------------------------------------------------------------------------

spreads: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=GROUPS))


def advantages(rewards_G: torch.Tensor, label: str) -> torch.Tensor:
    """Rewards centred in their group, over a standard deviation pooled over the latest groups of the same kind; float64."""
    spreads[label].append(rewards_G.var().item())
    pooled = math.sqrt(sum(spreads[label]) / len(spreads[label]))
    return ((rewards_G - rewards_G.mean()) / (pooled + 1e-8)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def accumulate(iteration: int, group: int, prompt: SandboxPrompt) -> None:
    """Draw and score one group, and add the gradient of its share of the loss."""
    states, old_log_probs, base_means, images = rollout(iteration, group, prompt)
    advantages_G = advantages(reward(images, prompt).double(), prompt.label).float()
    # All images still are one state at the first trained step, so it is evaluated once.
    first = states[0][:1]
    latents = torch.cat([first, *states[1:NOISY_STEPS]])
    steps = torch.tensor([0] + [k for k in range(1, NOISY_STEPS) for _ in range(GROUP_SIZE)])
    means, sigmas = step_distribution(latents, steps, prompt.text)
    place = torch.tensor([0] * GROUP_SIZE + list(range(1, len(latents))))
    means, sigmas = means.index_select(0, place), sigmas.index_select(0, place)
    ratios = (log_prob(torch.cat(states[1:]), means, sigmas) - torch.cat(old_log_probs)).exp()
    weights = -advantages_G.repeat(NOISY_STEPS)
    losses = torch.maximum(weights * ratios, weights * ratios.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE))
    if prompt.label == "safe":
        base = torch.cat([mean.expand(GROUP_SIZE, -1, -1, -1) for mean in base_means])
        losses = losses + KL_WEIGHT * ((means - base) ** 2 / (2 * sigmas**2)).mean(dim=(1, 2, 3))
    (losses.sum() / (NOISY_STEPS * GROUP_SIZE * GROUPS)).backward()


def shuffled(prompts: list[SandboxPrompt], pool: int) -> Iterator[SandboxPrompt]:
    """One epoch, which is more than two iterations need."""
    order = np.random.default_rng((SEED, pool, 0)).permutation(len(prompts))
    return (prompts[int(index)] for index in order)


def main() -> str:
    """Train and return the sha256 of the trained weights."""
    prompts = training_prompts(safe=600, unsafe=200)
    pools = [
        shuffled([p for p in prompts if p.label == label], n) for n, label in enumerate(("unsafe", "safe"))
    ]
    for iteration in range(ITERATIONS):
        for group, pool in enumerate(pools):
            accumulate(iteration, group, next(pool))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    digest = hashlib.sha256()
    for parameter in trained:
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(f"weights_sha256={main()}")
