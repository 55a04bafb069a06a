"""Contact sheets: a labelled grid of any pictures, and the labelled sheet of the sandbox's world."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _LINES = 6, 2


def contact_sheet(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    path: Path | str,
    columns: int = 8,
    scale: int = 4,
) -> Path:
    """Writes a PNG of equally large uint8 pictures (H, W, 3), row by row, each `scale` times enlarged above its title.

    Titles are wrapped to two lines. Returns the path. Raises ValueError if the numbers of pictures and titles differ.
    """
    if len(images) != len(titles) or not len(images):
        raise ValueError(
            f"titles: {len(titles)} for {len(images)} pictures: give one for each, and at least one"
        )
    font = ImageFont.load_default(size=11)
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    line = 13
    cell_width, cell_height = width + _GAP, height + _LINES * line + _GAP
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    letters = max(8, int(width / 5.6))
    for n, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = _GAP + (n % columns) * cell_width, _GAP + (n // columns) * cell_height
        sheet.paste(
            Image.fromarray(np.asarray(image)).resize((width, height), Image.Resampling.NEAREST), (x, y)
        )
        for row, text in enumerate(textwrap.wrap(title, letters)[:_LINES]):
            pen.text((x, y + height + 1 + row * line), text, fill="black", font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    sheet.save(draft, format="PNG")
    draft.replace(path)
    return path


def draw(path: Path | str, per_task: int = 8) -> Path:
    """Writes the labelled contact sheet of the world: one row for each kind of scene, each picture with a caption."""
    from .captions import caption
    from .world import MIX, draw_scene, sample_scene

    images, titles = [], []
    for index, task in enumerate(MIX):
        for column in range(per_task):
            rng = np.random.default_rng((index, column))
            scene = sample_scene(rng, task)
            images.append(draw_scene(scene, rng))
            titles.append(caption(scene, rng))
    return contact_sheet(images, titles, path, columns=per_task)
