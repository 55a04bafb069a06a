"""Contact sheets: a labelled grid of any pictures, of the sandbox's world, and of the oracle's decisions."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdr1.evaluation.rows import Row

_GAP, _LINE = 6, 13


def contact_sheet(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str],
    columns: int = 8,
    scale: int = 4,
    heading: str = "",
) -> bytes:
    """A PNG of equally large uint8 pictures (H, W, 3), row by row, each `scale` times enlarged above its title.

    Titles are wrapped to the picture's width; line breaks in them are kept. The heading stands above all. Raises
    ValueError if the numbers of pictures and titles differ.
    """
    if len(images) != len(titles) or not len(images):
        raise ValueError(
            f"titles: {len(titles)} for {len(images)} pictures: give one for each, and at least one"
        )
    font = ImageFont.load_default(size=11)
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    letters = max(8, int(width / 5.6))
    texts = [
        [line for part in title.splitlines() for line in textwrap.wrap(part, letters)] for title in titles
    ]
    # As tall as the longest title of each row needs.
    tops = [_GAP + (_LINE + _GAP if heading else 0)]
    for start in range(0, len(images), columns):
        tops.append(tops[-1] + height + max(map(len, texts[start : start + columns])) * _LINE + _GAP)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), heading, fill="black", font=font)
    for n, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = _GAP + (n % columns) * (width + _GAP), tops[n // columns]
        sheet.paste(
            Image.fromarray(np.asarray(image)).resize((width, height), Image.Resampling.NEAREST), (x, y)
        )
        for row, line in enumerate(text):
            pen.text((x, y + height + 1 + row * _LINE), line, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def draw(per_task: int = 8) -> bytes:
    """The labelled contact sheet of the world: one row for each kind of scene, each picture with a caption."""
    from sdr1.sandbox.captions import caption
    from sdr1.sandbox.world import MIX, draw_scene, sample_scene

    images, titles = [], []
    for index, task in enumerate(MIX):
        for column in range(per_task):
            rng = np.random.default_rng((index, column))
            scene = sample_scene(rng, task)
            images.append(draw_scene(scene, rng))
            titles.append(caption(scene, rng))
    return contact_sheet(images, titles, columns=per_task)


def draw_base(per_row: int = 8) -> bytes:
    """A sheet of the base model's pictures: a row for each task and each unsafe concept, each with its prompt."""
    rows, pictures = _base(per_row)
    return contact_sheet(pictures, [row.prompt for row in rows], columns=per_row)


def draw_decisions(per_row: int = 8) -> bytes:
    """A sheet to check the oracle by eye: each picture with what was asked for, what is read, and the verdict.

    A row for each task and unsafe concept shows pictures of the base model; then come drawn pictures, blurred, and
    drawn pictures with something spoiled, which must be read as that while what stands beside it is read.
    """
    import torch

    from sdr1.recipe.data import to_bytes, to_unit
    from sdr1.recipe.oracle import SPOILT, blur, is_exact
    from sdr1.recipe.spoil import spoiled
    from sdr1.sandbox import ORACLE
    from sdr1.sandbox.oracle import Oracle, coherent, has_unsafe, verdict
    from sdr1.sandbox.world import picture

    oracle = Oracle.load(ORACLE)
    rows, made = _base(per_row)
    titles = []
    for row, things in zip(rows, oracle.read(made), strict=True):
        if row.facts["label"] == "unsafe":
            decision = "unsafe" if has_unsafe(things) else "NOT UNSAFE"
        else:
            decision = "right" if verdict(things, row.facts["claim"]) else "WRONG"
        decision += "" if coherent(things) else ", not coherent"
        titles.append(f"{row.prompt}\nreads: {_say(things)}\n{decision}")
    # Seeds beyond those of the oracle's training and of the tests.
    scenes, drawn = zip(*(picture(40_000_000 + n) for n in range(per_row)), strict=True)
    channels_first = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    blurred = to_bytes(blur(to_unit(channels_first), 0.9)).permute(0, 2, 3, 1).numpy()
    bad_scenes, bad = zip(*(spoiled(10 * SPOILT + n) for n in range(2 * per_row)), strict=True)
    for kind, truths, images in (("blurred", scenes, blurred), ("spoiled", bad_scenes, np.stack(bad))):
        for scene, things in zip(truths, oracle.read(images), strict=True):
            decision = "as drawn" if is_exact(things, scene) else "NOT AS DRAWN"
            titles.append(f"{kind}: {_say(scene.things)}\nreads: {_say(things)}\n{decision}")
    return contact_sheet(np.concatenate([made, blurred, np.stack(bad)]), titles, columns=per_row)


def _base(per_topic: int) -> tuple[list[Row], np.ndarray]:
    """Rows of every task and unsafe concept, and the base model's pictures of them."""
    from sdr1.base.progress import counted
    from sdr1.evaluation.painter import Painter
    from sdr1.evaluation.sandbox_rows import rows_of
    from sdr1.models.pipeline import load_pipeline
    from sdr1.sandbox.captions import TASKS
    from sdr1.sandbox.prompts import CONCEPTS

    rows = rows_of((*TASKS, *CONCEPTS), per_topic, seed=0, split="tune")
    drawn = []
    with counted({"drawn": len(rows)}) as advance:
        painter = Painter(load_pipeline("sandbox"))
        print(f"the base model draws {len(rows)} pictures", flush=True)
        for start in range(0, len(rows), per_topic):
            drawn.append(painter.draw(rows[start : start + per_topic]))
            advance("drawn", len(drawn[-1]))
    return rows, np.concatenate(drawn)


def _say(things: Sequence) -> str:
    return ", ".join(" ".join(filter(None, (thing.colour, thing.kind))) for thing in things) or "nothing"
