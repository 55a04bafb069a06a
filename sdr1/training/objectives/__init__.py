"""The objectives; a new one is a file beside these and a line here, under the name that `learner.objective` gives it."""

from __future__ import annotations

from sdr1.config.training import Config
from sdr1.training.objectives.forward import Forward
from sdr1.training.objectives.grpo import Grpo
from sdr1.training.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    "grpo": Grpo,
    "forward": Forward,
}


def kind(config: Config) -> type[Objective]:
    """The class of a run's objective."""
    return OBJECTIVES[config.learner.objective]
