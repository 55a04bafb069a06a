"""A training run's folder: how sdr1 knows its own, who may train in it, and what a start keeps and clears there."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError
from sdr1.base.files import hold, open_lock, partial, refuse_foreign, remove_partial, sync, write_text
from sdr1.base.plain_data import peek, read_bytes
from sdr1.base.records import LearnerState
from sdr1.config.training import Config
from sdr1.training.checkpoint import (
    POINTER,
    TENSORS,
    TRACKER,
    Checkpoint,
    complete,
    folder_of,
    load,
    newest,
    reached,
)
from sdr1.training.differences import differences
from sdr1.training.observers import journal
from sdr1.training.storage import OWNER, Storage, explained, local_place

MARKER = "sdr1-run.json"
"""The file by which sdr1 knows a run's folder; it holds the config that the run was last started with."""
SUMMARY = "summary.json"
SAMPLES = "samples"
CHOSEN = "weights_of_iteration"
"""Of a run that a rule stopped: the iteration that its model is of."""
_SAMPLE = re.compile(r"(\d{6,})-(safe|unsafe)\.png")
_OUTPUT = re.compile(
    rf"{re.escape(journal.NAME)}|{TRACKER}|{SUMMARY}|{SAMPLES}/{_SAMPLE.pattern}|model/([^./][^/]*/)*[^./][^/]*"
)


def check(config: Config) -> None:
    """Whether training may start in `run.directory`; only reads.

    Raises:
        UserError: it holds something else, or a run that nobody asked to go on with.
    """
    run, address = config.run.directory, config.run.storage
    if not _of_an_earlier_version(run):
        refuse_foreign(run, MARKER, "training run", "run.directory")
    if address and (place := local_place(address)) and _overlap(place, run.resolve()):
        raise UserError(
            f"run.storage: {address}: is where run.directory {run} lies; a copy needs another place"
        )
    stored = is_stored(address) if address else False
    if config.run.resume == "auto" and (complete(run) or stored):
        return
    if stored:
        raise UserError(
            f"run.storage: {address}: holds a run; add run.resume=auto to go on with it, or choose another address"
        )
    if complete(run):
        state, advice = (
            "an unfinished run" if unfinished(run) else "a finished run",
            f"add --resume {run}, or ",
        )
    elif (run / SUMMARY).exists() or (run / "model").exists():
        state, advice = "a run whose checkpoints are gone", ""
    else:
        return
    raise UserError(f"run.directory: {run}: holds {state}; {advice}choose another directory, or remove it")


def unfinished(run: Path) -> bool:
    """Whether the folder holds a run that was stopped on its way, be it the way on from a finished run."""
    saved = complete(run)
    return bool(saved) and int(saved[-1].name) > peek(run / SUMMARY, "iterations", int)


def chosen(run: Path) -> Checkpoint | None:
    """The checkpoint that a run's model is of: the best, where a rule stopped the run, else the newest; None without any.

    Raises:
        UserError: it is not good.
    """
    number = 0 if unfinished(run) else peek(run / SUMMARY, CHOSEN, int)
    at = {int(folder.name): folder for folder in complete(run)}
    return load(at[number]) if number in at else newest(run)


def config_of(run: Path) -> dict[str, Any]:
    """The config, as plain data, that a run was last started with; empty for one of an earlier version."""
    return peek(run / MARKER, "config", dict)


@contextmanager
def held(config: Config) -> Iterator[None]:
    """Make the folder ours and keep others out of it; the system lets go when this process ends, however it ends.

    A start that is refused inside leaves nothing that was not there.

    Raises:
        UserError: it cannot be written, another process trains there, or as `check`.
    """
    run = config.run.directory
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        new = not os.listdir(run)
        with tempfile.TemporaryFile(dir=run):
            pass
        if not (run / MARKER).exists():
            _mark(run, {})
        lock = open_lock(run / "lock")
    except OSError as error:
        raise UserError(
            f"run.directory: {run}: cannot be written ({error.strerror}); change its permissions, make room, or choose another folder"
        ) from error
    with lock:
        hold(
            lock, f"run.directory: {run}: another process trains there; stop it, or choose another directory"
        )
        try:
            check(config)
            yield
        except UserError:
            if new:
                _unmake(run, made)
            raise


def starting_point(config: Config) -> LearnerState | None:
    """The state to go on from, in a folder that is held; what will be made again with other settings is cleared.

    Raises:
        UserError: no checkpoint is good, or the newest does not fit the config.
    """
    run = config.run.directory
    remove_partial(run)
    if config.run.resume == "auto" and config.run.storage:
        _bring(config.run.storage, run)
    found = newest(run) if config.run.resume == "auto" else None
    if found is not None:
        _check_fit(config, found)
    start = found.state.iteration if found else 0
    last = config_of(run) or (found.config if found else {})
    if not last or any(each.matters for each in differences(config, last)):
        _forget(run, start)
    _mark(run, config.model_dump(mode="json"))
    return found.state if found else None


def outputs(run: Path) -> list[str]:
    """What a run leaves beside its checkpoints, by its name in the folder, in the order in which it is made."""
    found = [path for pattern in ("*", f"{SAMPLES}/*", "model/**/*") for path in sorted(run.glob(pattern))]
    names = [path.relative_to(run).as_posix() for path in found if path.is_file()]
    return sorted(filter(is_output, names), key=lambda name: name == SUMMARY)


def is_output(name: str) -> bool:
    """Whether sdr1 writes a file of that name into a run's folder, beside its checkpoints and what marks the folder."""
    return _OUTPUT.fullmatch(name) is not None


def is_stored(address: str) -> bool:
    """Whether checkpoints of a run are at an address.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    store = Storage(address)
    with explained(address):
        is_ours = any(store.read(name) for name in (OWNER, MARKER))
        if not (is_ours or store.is_empty()):
            raise UserError(
                f"run.storage: {address}: is not empty and holds no training run of sdr1 ({OWNER} is missing); choose "
                "another address"
            )
        stored = is_ours and bool(store.complete())
        if is_ours and not stored and (store.read(SUMMARY) or store.names("model")):
            raise UserError(
                f"run.storage: {address}: holds a run whose checkpoints are gone; choose another address, or empty it"
            )
    return stored


def _bring(address: str, run: Path) -> None:
    """Make the folder what the copy is, unless the folder has that and maybe more, from when the store was away, or is
    further on a way of its own: what took longer stays.

    Raises:
        UserError: the copy cannot be read, or is of another run.
    """
    store = Storage(address)
    with explained(address):
        copied = store.complete()
        if not copied:
            return
        # Only whole lines are compared; the time in each makes it the only one of its kind.
        theirs = store.read(journal.NAME).rpartition(b"\n")[0]
        if here := complete(run):
            mine = read_bytes(run / journal.NAME) if (run / journal.NAME).is_file() else b""
            if mine.partition(b"\n")[0] != theirs.partition(b"\n")[0]:
                raise UserError(
                    f"run.storage: {address}: holds another run than run.directory {run}; choose another of the two"
                )
            ahead = int(here[-1].name) - int(copied[-1])
            if ahead > 0 and not mine.startswith(theirs):
                print(
                    f"run.storage: {run} has a checkpoint {ahead} iterations further than the copy at {address}, which "
                    "another start has made; the folder's run goes on, and takes the place of the copy",
                    flush=True,
                )
            if ahead > 0 or (ahead == 0 and mine.startswith(theirs)):
                return
        print(f"run.storage: the run at {address} is copied to {run}", flush=True)
        draft = partial(folder_of(run))
        try:
            store.get_checkpoints(draft)
            # Without checkpoints, which come last, the folder holds no run, and the next start copies again.
            _remove_checkpoints(run)
            names = set(filter(is_output, store.names()))
            for name in outputs(run):
                if name not in names and not name.startswith("model/"):
                    (run / name).unlink()
            for name in sorted({*names, MARKER}):
                store.get(name, run / name)
            # The pointer last, as it is when they are made.
            folder_of(run).mkdir(exist_ok=True)
            for name in (*sorted(path.name for path in draft.iterdir() if path.is_dir()), POINTER):
                (draft / name).rename(folder_of(run) / name)
            sync(folder_of(run))
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _remove_checkpoints(run: Path) -> None:
    """And the pointer to them; what a person put beside them stays."""
    folder = folder_of(run)
    (folder / POINTER).unlink(missing_ok=True)
    for name in reached((path.name for path in folder.glob("*") if path.is_dir()), b""):
        shutil.rmtree(folder / name)


def _overlap(one: Path, other: Path) -> bool:
    """Whether one of two folders lies in the other, or is it."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_fit(config: Config, found: Checkpoint) -> None:
    for difference in differences(config, found.config):
        if not difference.fits:
            raise UserError(
                f"{difference.field}: {difference.now!r}: the checkpoint {found.folder} was made with "
                f"{difference.then!r} and its weights do not fit; set it back, or start a new run"
            )
        print(difference, flush=True)
    if found.state.iteration > config.iterations:
        raise UserError(
            f"iterations: {config.iterations}: the checkpoint {found.folder} is at {found.state.iteration}; ask for "
            "as many or more"
        )


def _mark(run: Path, config: dict[str, Any]) -> None:
    write_text(run / MARKER, json.dumps({"config": config}, indent=2) + "\n")


def _forget(run: Path, start: int) -> None:
    """Drop the record of iterations from `start` on: their weights are gone, and other settings make others."""
    path = run / journal.NAME
    if path.exists() and journal.cut(path, start):
        # A tracker cannot take back what it was sent: it gets a new run with the whole record.
        (run / TRACKER).unlink(missing_ok=True)
    for picture in (run / SAMPLES).glob("*.png"):
        number = _SAMPLE.fullmatch(picture.name)
        if number and int(number[1]) >= start:
            picture.unlink()


def _unmake(run: Path, made: list[Path]) -> None:
    """Take away what a start that was refused had written: whatever else lies there, keeps its folder."""
    record = run / journal.NAME
    if record.exists() and record.stat().st_size:
        return
    for name in (MARKER, "lock", journal.NAME):
        (run / name).unlink(missing_ok=True)
    with suppress(OSError):
        for folder in made:
            folder.rmdir()


def _of_an_earlier_version(run: Path) -> bool:
    """Runs had no marker once; their checkpoints, record and summary are known by what is in them."""
    return (
        any((folder / TENSORS).is_file() for folder in complete(run))
        or peek(run / SUMMARY, "weights_sha256", str) != ""
        or peek(run / TRACKER, "mlflow_run_id", str) != ""
    )
