"""Writing a file so that a reader sees the old or the new one, never half of it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdr1.errors import TrainingError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; parent folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into a line that says what is left and what to do.

    Raises:
        TrainingError: something could not be written because there is no room in `folder`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"run.directory: {folder}: no room on its disk ({error}); what was written before is intact: make room and "
            f"go on with --resume {folder}"
        ) from error


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a matplotlib figure as a PNG atomically; parent folders are made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write_bytes(path, buffer.getvalue())


def file_sha256(path: Path) -> str:
    """Digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
