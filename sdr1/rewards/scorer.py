"""What a reward worker does with a group: its rewards, term by term, and what the monitor sees in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdr1.base.errors import TrainingError, UserError, reason
from sdr1.base.records import Prompt, Scores
from sdr1.config.rewards import RewardConfig, TermConfig
from sdr1.method.objective import standardised
from sdr1.models import pictures
from sdr1.models.embedder import Embedders
from sdr1.rewards.terms import kind
from sdr1.rewards.terms.term import TermContext

if TYPE_CHECKING:
    from sdr1.rewards.terms.term import Term

Monitor = Callable[[np.ndarray], np.ndarray]
"""Flags unsafe images: RGB uint8 (N, H, W, 3) to bool (N,); never trained on."""


class Scorer:
    """Reward and monitor of one worker.

    Raises:
        UserError: a term names something that does not load.
    """

    def __init__(self, config: RewardConfig) -> None:
        embedders = Embedders(config.model, config.pretrained, config.device, config.batch)
        self._options = _options(config)
        self._terms = {
            name: kind(options).build(options, TermContext(_field(name), config.device, embedders))
            for name, options in self._options.items()
        }
        self._monitor = _monitor(config)

    def score(self, images_NHWC: np.ndarray, prompt: Prompt) -> Scores:
        """Score the RGB uint8 images (G, H, W, 3) of one prompt.

        Raises:
            TrainingError: a term fails, or does not give one finite number an image.
        """
        begin = time.perf_counter()
        rewards = np.zeros(len(images_NHWC), np.float32)
        means: dict[str, float] = {}
        for name, term in self._terms.items():
            values = _values(_field(name), term, images_NHWC, prompt)
            means[name] = float(values.mean())
            if self._options[name].normalise:
                values = standardised(torch.from_numpy(values)).numpy()
            rewards += np.float32(self._options[name].weight) * values
        unsafe = self._monitor(images_NHWC) if self._monitor else None
        terms = means if len(means) > 1 else {}
        colours = pictures.colours(images_NHWC)
        return Scores(rewards, unsafe, time.perf_counter() - begin, terms, colours)


def _values(field: str, term: Term, images_NHWC: np.ndarray, prompt: Prompt) -> np.ndarray:
    """What a term says of N images, shape (N,), float32; a term may be anybody's code, so that nothing is taken on trust.

    Raises:
        TrainingError: it is no finite number an image; the message names the term.
    """
    try:
        given = np.asarray(term(images_NHWC, prompt))
    except (TrainingError, UserError):
        raise
    # Code that leaves by sys.exit would end its worker without a word.
    except (Exception, SystemExit) as error:
        raise TrainingError(
            f"{field}: raised {type(error).__name__}: {reason(error)}; mend the term"
        ) from error
    needs = f"for {len(images_NHWC)} images; needs one finite number each"
    if given.dtype.kind not in "biuf":
        raise TrainingError(f"{field}: gave {given.dtype} {needs}")
    if given.shape != (len(images_NHWC),):
        raise TrainingError(f"{field}: gave shape {given.shape} {needs}")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise TrainingError(f"{field}: gave {given[~np.isfinite(values)][0]} {needs}")
    return values


def check(config: RewardConfig) -> None:
    """Raise UserError for what files and modules can tell to be wrong with the terms; no weights are loaded."""
    for name, options in _options(config).items():
        kind(options).check(options, _field(name))


def check_monitor(config: RewardConfig, pixels: int) -> None:
    """Raise UserError where the monitor cannot read pictures of that many pixels a side."""
    from sdr1.sandbox.world import SIZE

    if config.monitor == "oracle" and pixels != SIZE:
        raise UserError(
            f"reward.monitor: 'oracle': it reads the sandbox's pictures of {SIZE} pixels, the policy draws {pixels}; set "
            "reward.monitor=null"
        )


def _options(config: RewardConfig) -> dict[str, TermConfig]:
    """Every term by its name, the reward's own first."""
    return {"main": config, **config.terms}


def _field(name: str) -> str:
    return "reward" if name == "main" else f"reward.terms.{name}"


def _monitor(config: RewardConfig) -> Monitor | None:
    if config.monitor is None:
        return None
    from sdr1.sandbox import ORACLE
    from sdr1.sandbox.oracle import Oracle, has_unsafe

    oracle = Oracle.load(ORACLE)
    return lambda images: np.array([has_unsafe(things) for things in oracle.read(images)])
