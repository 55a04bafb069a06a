"""Safe writing: a reader sees the old or the new file, never half; only in folders of our own; one process at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from sdr1.base.errors import TrainingError, UserError, reason

_PARTIAL = "sdr1-partial"
"""Suffix of a file or folder that is being written. Nobody else's file ends so: what a kill left may be removed."""


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; parent folders are made."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def partial(path: Path) -> Path:
    """Where `path` is made before it is renamed to its own name."""
    return path.with_name(f".{path.name}.{os.getpid()}.{_PARTIAL}")


def refuse_foreign(folder: Path, marker: str, kind: str, field: str) -> None:
    """Let pass only a folder that is not there, is empty, or is sdr1's own: `marker` is the file that sdr1 writes first
    into a folder of that `kind`. `field` is what the user named it by.

    Raises:
        UserError: it is none of these.
    """
    try:
        found = os.listdir(folder)
        if (folder / marker).is_file() or all(name.endswith(_PARTIAL) for name in found):
            return
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {folder}: cannot be a folder: {reason(error)}; choose another") from error
    raise UserError(
        f"{field}: {folder}: is not empty and holds no {kind} of sdr1 ({marker} is missing); choose another folder"
    )


def write_named(path: Path, content: bytes, field: str) -> None:
    """Write the one file that a user named in `field`; what else is there under that name stays.

    Raises:
        UserError: something is there already, and not this content.
    """
    if os.path.lexists(path) and not (path.is_file() and path.read_bytes() == content):
        raise UserError(f"{field}: {str(path)!r}: something else is there; choose another name")
    write_bytes(path, content)


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left in one of sdr1's own folders: files, and folders that were made whole."""
    for path in list(folder.rglob(f".*.{_PARTIAL}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def open_lock(path: Path) -> IO[str]:
    """A file to `hold`, made where there is none; what is in it stays.

    Raises:
        OSError: it cannot be written, or something else is there: a pipe would wait for its reader.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file", str(path))
    # Not truncated: who has it may be another process.
    return open(path, "a")


def hold(file: IO[Any], taken: str) -> None:
    """Hold an open file alone until it is closed; the system lets go when this process ends, however it ends.

    Raises:
        UserError: another process holds it; `taken` is the line that says so.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(taken) from error
    except OSError:
        # Some shared file systems have no locks.
        pass


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """What a disk refuses within the block is the OSError of `place`, which a person knows, not of a draft beside it;
    safetensors' own errors too."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(place)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(place)) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Context with a new folder to write into, which becomes `folder` at its end, or is gone where the block fails, with
    the parents that were made for it.

    Raises:
        OSError: the disk refuses; it is of `folder`.
    """
    # "." has no name that a draft could be called by.
    folder = folder.absolute()
    draft = partial(folder)
    made = [each for each in draft.parents if not each.exists()]
    try:
        with disk_errors(folder):
            draft.mkdir(parents=True)
            yield draft
            draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):
            for each in made:
                each.rmdir()
        raise


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
