"""Image files that anybody may have made: reading one, and which file is which row's, by its name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sdr1.base.errors import UserError, reason
from sdr1.evaluation.rows import Row

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
# Other formats' decoders run programs or read other files.
_FORMATS = ("PNG", "WEBP", "JPEG")
_MAX_PIXELS = 64 * 2**20


def load(path: Path, field: str) -> Image.Image:
    """An image file as RGB; `field` is what the user named it or its folder by.

    Raises:
        UserError: it is no regular file, no PNG, WebP or JPEG that decodes to its end, or of more than 64 Mi pixels.
    """
    # Opening a pipe would wait for its writer.
    if not path.is_file():
        raise UserError(f"{field}: {path}: no image file is there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise UserError(
                        f"{field}: {path}: {image.width} x {image.height} pixels; at most {_MAX_PIXELS} are read"
                    )
                return image.convert("RGB")
    except UserError:
        raise
    # Decoders let all kinds of errors out when their bytes are damaged.
    except Exception as error:
        raise UserError(
            f"{field}: {path}: not a PNG, WebP or JPEG image that can be read: {reason(error)}"
        ) from error


def check(path: Path, row: Row, field: str) -> None:
    """That a file holds an image of its row's size.

    Raises:
        UserError: it does not; the message says how it is mended.
    """
    size = load(path, field).size
    if size != (row.width, row.height):
        raise UserError(
            f"{field}: {path}: {size[0]} x {size[1]} pixels, its row has {row.width} x {row.height}; remove the file "
            "and it is drawn again"
        )


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
        if path.suffix.lower() in SUFFIXES:
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
        width, height = load(paths[row.id], "--images").size
        sized.append(replace(row, width=width, height=height))
    return sized, {row.id: paths[row.id] for row in rows}
