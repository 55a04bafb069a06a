"""The copy of a run at `run.storage`: a store that fsspec knows, laid out as the run's folder is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.dirfs import DirFileSystem

from sdr1.base.errors import UserError, reason
from sdr1.base.extras import missing
from sdr1.base.files import partial, sync, write_text
from sdr1.base.plain_data import parse_json
from sdr1.training.checkpoint import FACTS, POINTER, TENSORS, pointer_to, reached

OWNER = "owner.json"
"""The file by which sdr1 knows an address of its own; it says which start of the run writes there."""
_CHECKPOINTS = "checkpoints"


class Storage:
    """Files under an address, by their names there; a store replaces each whole, and knows no folders.

    Methods raise whatever the store's library raises; within `explained` that is a line for the user.
    """

    def __init__(self, address: str) -> None:
        """Nothing is asked of the store yet.

        Raises:
            UserError: no library for it is installed.
        """
        self._fs = _file_system(address)

    def names(self, under: str = "") -> set[str]:
        """Of all files, or of those in a folder there."""
        self._fs.invalidate_cache()
        return set(self._fs.find(under))

    def is_empty(self) -> bool:
        """Whether no file is there; not more is listed than it takes to find one."""
        self._fs.invalidate_cache()
        try:
            return not any(name for *_, files in self._fs.walk("", on_error="raise") for name in files)
        except FileNotFoundError:
            # No such folder; that there is no such bucket, only a search says.
            return not self.names()

    def read(self, name: str) -> bytes:
        """The content of a file; empty if there is none."""
        try:
            return self._fs.cat_file(name)
        except FileNotFoundError:
            return b""

    def write(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(name, content)

    def put(self, file: Path, name: str) -> None:
        self._fs.put_file(str(file), name)

    def get(self, name: str, file: Path) -> None:
        """Copy to the disk, whole or not at all; parent folders are made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = partial(file)
        self._fs.get_file(name, str(draft))
        draft.replace(file)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(name)

    def complete(self) -> list[str]:
        """Names of the checkpoints that are whole and that the pointer has reached, oldest first."""
        whole = {name.split("/")[1] for name in self.names(_CHECKPOINTS) if _in_checkpoint(name, FACTS)}
        pointer = self.read(f"{_CHECKPOINTS}/{POINTER}") if whole else b""
        if not pointer:
            # Before the first pointer nothing else tells the half of a file that a plain file system shows.
            whole = {name for name in whole if _is_json(self.read(f"{_CHECKPOINTS}/{name}/{FACTS}"))}
        return reached(whole, pointer)

    def get_checkpoints(self, folder: Path) -> None:
        """Copy all that are complete, and a pointer to the last; nobody may look into `folder` meanwhile."""
        names = self.complete()
        for name in names:
            for file in (TENSORS, FACTS):
                self.get(f"{_CHECKPOINTS}/{name}/{file}", folder / name / file)
                sync(folder / name / file)
        write_text(folder / POINTER, pointer_to(names[-1]))

    def put_checkpoint(self, name: str, tensors: Path, facts: bytes) -> None:
        """It counts once `facts` are there and the pointer has reached it: a writer that dies before leaves none."""
        self.remove(f"{_CHECKPOINTS}/{name}/{FACTS}")
        self.put(tensors, f"{_CHECKPOINTS}/{name}/{TENSORS}")
        self.write(f"{_CHECKPOINTS}/{name}/{FACTS}", facts)

    def point_to(self, name: str) -> None:
        self.write(f"{_CHECKPOINTS}/{POINTER}", pointer_to(name).encode())

    def keep_checkpoints(self, names: set[str]) -> None:
        """Remove all others, and what writers that died have left of them."""
        # The facts first: without them the rest is no checkpoint.
        for file in (FACTS, TENSORS):
            for name in sorted(self.names(_CHECKPOINTS)):
                if _in_checkpoint(name, file) and name.split("/")[1] not in names:
                    self.remove(name)


def local_place(address: str) -> Path | None:
    """The folder on this machine's disk that an address is; None of a store elsewhere."""
    scheme, _, place = address.partition("://")
    return Path(place).resolve() if scheme in ("file", "local") else None


def _in_checkpoint(name: str, file: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and parts[::2] == [_CHECKPOINTS, file] and bool(reached([parts[1]], b""))


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content, FACTS)
    except UserError:
        return False
    return True


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn whatever a store refuses within the block into a line for the user; a full disk stays what it is.

    Raises:
        UserError: the store is not there, does not answer, or refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            fix = "give credentials that may list, read, write and delete there"
        elif isinstance(error, FileNotFoundError):
            fix = "make the bucket, or give another address"
        else:
            fix = "see whether the store answers, or give another address"
        raise UserError(f"run.storage: {address}: {reason(error)}; {fix}") from error


def _file_system(address: str) -> AbstractFileSystem:
    # An object store needs no folders, a file system does.
    options = {"auto_mkdir": True} if address.startswith(("file://", "local://")) else {}
    place = f"run.storage: {address}"
    try:
        found, root = url_to_fs(address, **options)
    except ImportError as error:
        library = getattr(error.__cause__, "name", None) or ""
        raise missing(library, place) or UserError(f"{place}: {reason(error)}") from error
    except ValueError as error:
        raise UserError(
            f"{place}: {reason(error)}; give one that fsspec knows, e.g. s3://bucket/run"
        ) from error
    return DirFileSystem(root, found)
