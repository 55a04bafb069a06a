"""Images that were made elsewhere: which file is which row's, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdr1.errors import UserError
from sdr1.evaluation.rows import Row

_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def _other_scripts(row: str) -> str:
    """`12_0`, as other scripts call the first image of the prompt with the number 12; ours is 12 or 12-0."""
    return re.sub(r"^(\d+)(?:-(\d+))?$", lambda found: f"{found[1]}_{found[2] or 0}", row)


def find(folder: Path, rows: Sequence[Row]) -> tuple[list[Row], dict[str, Path]]:
    """The rows with their images' true sizes, and every row's file.

    Raises:
        UserError: a row has no image or several, or one cannot be read.
    """
    paths: dict[str, Path] = {}
    names = {_other_scripts(row.id): row.id for row in rows}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES:
            name = path.relative_to(folder).with_suffix("").as_posix().removeprefix("images/")
            name = names.get(name, name)
            if name in paths:
                raise UserError(f"--images: {path} and {paths[name]} are both row {name}; leave one")
            paths[name] = path
    missing = [row.id for row in rows if row.id not in paths]
    if missing:
        raise UserError(
            f"--images: {str(folder)!r}: {len(missing)} of {len(rows)} rows have no image, the first is "
            f"{missing[0]}.png; name every file after its row"
        )
    sized = []
    for row in rows:
        try:
            with Image.open(paths[row.id]) as image:
                width, height = image.size
        except OSError as error:
            raise UserError(f"--images: {paths[row.id]}: not an image: {error}") from error
        sized.append(Row(row.id, row.prompt, row.seed, row.sampler, width, height, row.facts))
    return sized, {row.id: paths[row.id] for row in rows}
