"""The one place that says how a model draws and makes diffusers schedulers: for latents, of what it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdr1.base.errors import UserError, reason

# Latents do not lie in [-1, 1] as pixels do. Several classes clip by default, whatever file they are made from.
_LATENTS = {"clip_sample": False, "thresholding": False}
# Stable Diffusion's PNDM is without Runge-Kutta steps, whatever scheduler the pipeline came with.
_OWN: dict[str, dict[str, Any]] = {"PNDMScheduler": {"skip_prk_steps": True}}


@dataclass(frozen=True)
class Sampler:
    """How a model draws: a diffusers scheduler class, its steps, guidance and eta (0: deterministic DDIM)."""

    scheduler: str = "DDIMScheduler"
    steps: int = 8
    guidance_scale: float = 1.5
    eta: float = 0.0


def make(name: str, config: Any, field: str = "sampler.scheduler") -> Any:
    """The scheduler of that class name, with the betas and the prediction type of another one's `config`.

    Raises:
        UserError: as `scheduler_class`, or `config` does not suit it; `field` is the option that error lines name.
    """
    return for_latents(scheduler_class(name, field), config, f"{field}: {name!r}")


def for_latents(kind: Any, config: Any, where: str) -> Any:
    """A scheduler of a diffusers class that neither clips nor thresholds; `where` begins error lines."""
    try:
        return kind.from_config(config, **_LATENTS, **_OWN.get(kind.__name__, {}))
    except Exception as error:
        raise UserError(
            f"{where}: cannot be made of the model's scheduler_config.json: {reason(error)}; use DDIMScheduler"
        ) from error


def check(
    name: str,
    steps: int,
    config: Any,
    fields: tuple[str, str] = ("sampler.scheduler", "sampler.steps"),
) -> None:
    """Look at a scheduler and its steps before anything is drawn; `fields` are the options that error lines name.

    Raises:
        UserError: as `make`, or it cannot make so many steps.
    """
    made = make(name, config, fields[0])
    most = made.config.num_train_timesteps
    if steps > most:
        # Some classes go on with repeated or broken timesteps.
        raise UserError(
            f"{fields[1]}: {steps}: the model was trained on {most} timesteps; use as many or fewer"
        )
    try:
        made.set_timesteps(steps)
    except Exception as error:
        raise UserError(f"{fields[1]}: {steps}: {name} refuses them: {reason(error)}; use e.g. 50") from error


def scheduler_class(name: str, field: str = "sampler.scheduler") -> Any:
    """A class of diffusers that can stand in for a Stable Diffusion's own scheduler.

    Raises:
        UserError: there is none of that name, or it needs a library that is not here.
    """
    import diffusers

    found: Any = getattr(diffusers, name, None)
    try:
        # In place of a scheduler whose library is missing diffusers has a class that raises when it is looked at.
        known = name in diffusers.DDIMScheduler._compatibles and hasattr(found, "set_timesteps")
        if known and "DDIMScheduler" in found._compatibles:
            return found
    except ImportError as error:
        raise UserError(f"{field}: {name!r}: {str(error).strip().splitlines()[0]}") from error
    raise UserError(
        f"{field}: {name!r}: diffusers has no such scheduler for Stable Diffusion; e.g. DDIMScheduler, "
        "EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler"
    )
