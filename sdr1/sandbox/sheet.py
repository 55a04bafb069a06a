"""`sdr1 sandbox draw`: a labelled contact sheet of the drawn world."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdr1.sandbox.captions import TASKS, caption
from sdr1.sandbox.world import picture

_COLUMNS = 5


def draw(path: Path) -> None:
    """Write a PNG with a row of captioned pictures for each task, for unsafe things and unsafe things beside shapes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = (*TASKS, "unsafe", "unsafe_beside")
    figure, axes = plt.subplots(len(tasks), _COLUMNS, figsize=(2.6 * _COLUMNS, 2.1 * len(tasks)))
    for row, task in zip(axes, tasks, strict=True):
        for seed, axis in enumerate(row):
            scene, pixels = picture(seed, task)
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(caption(scene, np.random.default_rng(seed)), fontsize=7)
            axis.set_axis_off()
        row[0].set_axis_on()
        row[0].set(xticks=[], yticks=[])
        row[0].set_ylabel(task, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
