"""Copies what a run writes to `run.storage` while it trains: checkpoints, and with each the record and the pictures."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sdr1.base.errors import TrainingError, reason
from sdr1.base.files import partial
from sdr1.base.records import GroupTask
from sdr1.config.training import Config
from sdr1.training.checkpoint import FACTS, TENSORS, TRACKER, complete
from sdr1.training.loop import Executor
from sdr1.training.observers import journal
from sdr1.training.run_folder import MARKER, SAMPLES, is_output, outputs
from sdr1.training.storage import OWNER, Storage, explained

_POLL = 1.0
"""Seconds between looks at the folder."""
_LONGEST_PAUSE = 30.0
"""Seconds between two tries while a store is away."""
_LAST_TRIES = 3
"""In a row, when training is over."""
_GRACE = 25.0
"""Seconds that a stopped process waits for what is under way; Kubernetes kills after 30."""
_log = logging.getLogger("sdr1")


class Mirror:
    """Context manager and observer. A thread sends what is on the disk: training never waits for it, and a store that is
    away costs nothing but the copy. The end of a run waits until all is sent.

    A store has no locks. So a start leaves its name there, and who finds another's before a checkpoint stops.

    Raises:
        UserError: on entering; the store is not there, or refuses.
        TrainingError: another start of the run has taken it over; on leaving: something could not be sent.
    """

    def __init__(self, config: Config) -> None:
        assert config.run.storage is not None
        self._address, self._run = config.run.storage, config.run.directory
        self._store = Storage(self._address)
        self._owner = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        ).encode()
        self._sent: dict[str, bytes] = {}
        """The facts of each checkpoint of ours that is there."""
        self._seen: dict[str, tuple[int, int, int]] = {}
        """What the other files were when they were sent."""
        self._taken = self._failed = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)

    def __enter__(self) -> Mirror:
        with explained(self._address):
            self._store.write(OWNER, self._owner)
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.set()
        is_stopped = kind is not None and not issubclass(kind, Exception)
        self._thread.join(_GRACE if is_stopped else None)
        if kind is None:
            self._raise_problem()
        if kind is None and self._failed:
            raise TrainingError(f"run.storage: {self._address}: {self._failed}; {self._left}")
        if self._failed or self._thread.is_alive():
            _log.warning("run.storage: %s: not all of it was sent; %s", self._address, self._left)

    def accumulated(self, task: GroupTask) -> None:
        self._raise_problem()

    def iteration(
        self, iteration: int, metrics: dict[str, float], tasks: Sequence[GroupTask], executor: Executor
    ) -> None:
        """What is new is seen on the disk."""

    @property
    def _left(self) -> str:
        return f"all of it is in {self._run}, and `sdr1 train CONFIG --resume {self._run}` sends the rest"

    def _raise_problem(self) -> None:
        if self._taken:
            raise TrainingError(
                f"run.storage: {self._address}: another start has taken this run over ({self._taken}); this one stops, and "
                f"what it made is in {self._run}"
            )

    def _take_over(self) -> None:
        """Make the copy agree with a folder that training is about to go on in."""
        here = {folder.name: _content(folder / FACTS) for folder in complete(self._run)}
        self._sent = {
            name: here[name]
            for name in self._store.complete()
            if here.get(name) and here[name] == self._store.read(f"checkpoints/{name}/{FACTS}")
        }
        for name in self._store.names():
            is_ours = is_output(name) and (name == TRACKER or name.startswith(f"{SAMPLES}/"))
            if is_ours and not (self._run / name).exists():
                self._store.remove(name)
        # The settings last: who finds them finds a record that goes with them.
        for name in (journal.NAME, MARKER):
            if (self._run / name).exists():
                self._store.put(self._run / name, name)

    def _work(self) -> None:
        failures = 0
        while not self._taken:
            is_over = self._closing.wait(_POLL)
            try:
                self._send(everything=is_over)
                failures, self._failed = 0, ""
                if is_over:
                    return
            except Exception as error:
                failures += 1
                self._failed = reason(error)
                if is_over and failures >= _LAST_TRIES:
                    return
                if failures == 1:
                    _log.warning(
                        "run.storage: %s: %s; training goes on, all is in %s and is sent when the store is back",
                        self._address, self._failed, self._run,
                    )  # fmt: skip
                pause = min(_LONGEST_PAUSE, 2.0**failures)
                time.sleep(pause) if is_over else self._closing.wait(pause)

    def _send(self, everything: bool) -> None:
        while (found := self._unsent()) or everything:
            owner = self._store.read(OWNER)
            if owner and owner != self._owner:
                self._taken = owner[:200].decode(errors="replace")
                return
            # A checkpoint's rows of the record are there before it.
            self._send_outputs()
            if found is not None:
                self._send_checkpoint(*found)
            self._prune()
            if found is None:
                return

    def _unsent(self) -> tuple[Path, bytes] | None:
        """The newest checkpoint that is not there, and its facts."""
        for folder in reversed(complete(self._run)):
            facts = _content(folder / FACTS)
            if facts and self._sent.get(folder.name) != facts and (folder / TENSORS).is_file():
                return folder, facts
        return None

    def _send_checkpoint(self, folder: Path, facts: bytes) -> None:
        # A name of our own: on a slow line the checkpoint may be pruned here before it is there.
        tensors = partial(self._run / TENSORS)
        tensors.unlink(missing_ok=True)
        try:
            try:
                os.link(folder / TENSORS, tensors)
            except FileNotFoundError:
                return
            except OSError:
                shutil.copyfile(folder / TENSORS, tensors)
            self._store.put_checkpoint(folder.name, tensors, facts)
        finally:
            tensors.unlink(missing_ok=True)
        self._sent[folder.name] = facts
        self._store.point_to(max(self._sent, key=int))

    def _prune(self) -> None:
        kept = {folder.name for folder in complete(self._run)}
        # Who removes the folder while training goes on, means the folder.
        if kept:
            self._store.keep_checkpoints(kept)
            self._sent = {name: facts for name, facts in self._sent.items() if name in kept}

    def _send_outputs(self) -> None:
        for name in outputs(self._run):
            try:
                found = (self._run / name).stat()
            except FileNotFoundError:
                continue
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if self._seen.get(name) != seen:
                self._store.put(self._run / name, name)
                self._seen[name] = seen


def _content(file: Path) -> bytes:
    """Empty if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
