"""What a person sees while a run goes on: a live bar on a terminal, one plain line an iteration without one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sdr1.base.records import GroupTask
from sdr1.config.training import Config
from sdr1.training.loop import Executor
from sdr1.training.objectives.objective import RATIO_GAP

_SHOWN = (
    ("reward_safe", "reward safe {:.3f}"),
    ("reward_unsafe", "unsafe {:.3f}"),
    ("unsafe_rate", "unsafe rate {:.2f}"),
    ("kl", "KL {:.1e}"),
    ("clip_fraction", "clipped {:.2f}"),
    ("images_per_second", "{:.1f} images/s"),
    ("rollout_busy", "busy: rollout {:.0%}"),
    ("reward_busy", "reward {:.0%}"),
    ("learner_busy", "learner {:.0%}"),
)


class Progress:
    """Context manager and observer."""

    def __init__(self, config: Config, start: int = 0) -> None:
        self._config, self._start = config, start
        self._console = Console()
        self._bar = Bar(
            TextColumn("iteration"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Progress:
        config = self._config
        self._say(
            f"seed {config.seed}: {config.iterations} iterations of {config.prompts.per_iteration} groups x "
            f"{config.rollout.group_size} images, {config.policy.trainable} training, {config.policy.steps} steps, "
            f"into {config.run.directory}"
        )
        if self._start:
            self._say(f"goes on after iteration {self._start} of {config.iterations}")
        self._bar.start()
        self._task = self._bar.add_task("", total=config.iterations, completed=self._start, status="starting")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def accumulated(self, task: GroupTask) -> None:
        groups = self._config.prompts.per_iteration
        self._bar.update(self._task, status=f"groups {task.group + 1}/{groups}")

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        if iteration == self._start:
            gaps = [value for name, value in metrics.items() if name.startswith(RATIO_GAP)]
            if gaps:
                self._say(f"likelihood ratio before the first update: 1 +- {max(gaps):.1e}")
        shown = ", ".join(text.format(metrics[name]) for name, text in _SHOWN if name in metrics)
        line = f"{iteration + 1}/{self._config.iterations} {shown}"
        if self._console.is_terminal:
            self._bar.print(line, highlight=False)
        else:
            self._say(line)
        self._bar.update(self._task, completed=iteration + 1)

    def _say(self, line: str) -> None:
        # Not wrapped: a line of a log file is one record.
        print(line, flush=True) if not self._console.is_terminal else self._console.print(
            line, highlight=False
        )
