"""The copy of a run in a store: whole or absent at every moment, refused when edited, and enough to go on from."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem

from sdr1 import cli
from sdr1.base.errors import TrainingError, UserError
from sdr1.base.files import write_text
from sdr1.base.records import LearnerState, Weights
from sdr1.config.training import validate
from sdr1.models.flat import checksum
from sdr1.training import checkpoint, mirror, run_folder
from sdr1.training.mirror import Mirror
from sdr1.training.observers.journal import NAME
from sdr1.training.run import train
from sdr1.training.storage import Storage

ADDRESS = "memory://bucket/run"


@pytest.fixture(autouse=True)
def _empty_store(monkeypatch):
    fsspec.filesystem("memory").store.clear()
    # Neither has anything to do with the copy, and hundreds of checkpoints are written here.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(checkpoint, "_versions", dict)


def on(config, folder, address=ADDRESS, **changes):
    """The config, told to go on in `folder` with a copy at `address`."""
    values = config.model_dump(mode="json") | changes
    values["run"] |= {"directory": str(folder), "storage": address, "resume": "auto"}
    return validate(values)


def contents(address=ADDRESS):
    store = Storage(address)
    return {name: store.read(name) for name in store.names()}


def state(iteration, kind=0):
    buffer = np.full(4, 10 * kind + iteration, np.uint8)
    return LearnerState(0, (Weights(iteration, buffer, checksum(buffer)),), None, {})


def make(config, iteration, kind=0):
    """What an iteration leaves on the disk: its row, a picture, a checkpoint of which two are kept."""
    run = config.run.directory
    record = run / NAME
    lines = record.read_text().splitlines(keepends=True)[: iteration - 1] if record.is_file() else []
    row = {"iteration": iteration - 1, "time": 100.0 * kind + iteration}
    write_text(record, "".join([*lines, json.dumps(row) + "\n"]))
    write_text(run / "samples" / f"{iteration:06d}-safe.png", f"picture {kind}")
    checkpoint.save(run, state(iteration, kind), config, {"reward": float(kind)})
    for folder in checkpoint.complete(run)[:-2]:
        shutil.rmtree(folder)


def opened(config):
    """A mirror whose work is done by hand."""
    with run_folder.held(config):
        found = run_folder.starting_point(config)
    copy = Mirror(config)
    copy._store.write("owner.json", copy._owner)
    copy._take_over()
    return copy, found.iteration if found else 0


def test_a_run_goes_on_on_another_machine_to_the_same_bits(small, tmp_path):
    whole = train(small(4), local=True)
    first = on(small(2), tmp_path / "a")
    train(first, local=True)
    there = contents()
    here = {
        path.relative_to(tmp_path / "a").as_posix(): path.read_bytes()
        for path in (tmp_path / "a").rglob("*")
        if path.is_file() and path.name != "lock"
    }
    there.pop("owner.json")
    assert there == here, "checkpoints, pointer, record, settings, model and summary"
    shutil.rmtree(tmp_path / "a")
    second = train(on(small(2), tmp_path / "b", iterations=4), local=True)
    assert second.weights_sha256 == whole.weights_sha256
    rows = [json.loads(line) for line in contents()[NAME].splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert json.loads(contents()["summary.json"])["weights_sha256"] == whole.weights_sha256
    assert Storage(ADDRESS).complete() == ["000003", "000004"], "two are kept there too"


class Killed(BaseException):
    pass


@pytest.fixture
def dies(monkeypatch):
    """Makes the n-th change of a store from now on the last: it is made by half, or not at all, and the writer dies."""
    left = [-1]

    def counted(method, half):
        def change(self, *arguments, **options):
            if left[0] == 0:
                half(self, *arguments)
                raise Killed
            left[0] -= 1
            return method(self, *arguments, **options)

        return change

    def half_written(fs, name, content):
        # A file system shows half a file, an object store does not.
        if "file" in fs.fs.protocol:
            whole(fs, name, content[: len(content) // 2])

    whole = DirFileSystem.pipe_file
    monkeypatch.setattr(DirFileSystem, "pipe_file", counted(DirFileSystem.pipe_file, half_written))
    monkeypatch.setattr(
        DirFileSystem,
        "put_file",
        counted(
            DirFileSystem.put_file, lambda fs, file, name: half_written(fs, name, Path(file).read_bytes())
        ),
    )
    monkeypatch.setattr(DirFileSystem, "rm_file", counted(DirFileSystem.rm_file, lambda *_: None))
    return lambda n: left.__setitem__(0, n)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_whenever_a_writer_dies_the_copy_has_the_newest_whole_checkpoint(small, tmp_path, dies, kind):
    """Every change of the store in turn is the last; the same iterations are made again on another machine."""
    died, n = True, 0
    while died:
        address = f"memory://bucket/{n}" if kind == "memory" else f"file://{tmp_path}/store-{n}"
        config, reached, died = on(small(5), tmp_path / f"a-{n}", address), 0, False
        try:
            dies(n)
            copy, _ = opened(config)
            for iteration in range(1, 4):
                make(config, iteration)
                copy._send(everything=False)
                reached = iteration
        except Killed:
            died = True
        dies(-1)
        config = on(small(5), tmp_path / f"b-{n}", address)
        copy, start = opened(config)
        assert start in (reached, reached + 1), f"after {n} changes"
        found = checkpoint.newest(config.run.directory)
        assert found is None or np.array_equal(found.state.result.buffer, state(start).result.buffer)
        for iteration in range(start + 1, 5):
            make(config, iteration, kind=1)
            copy._send(everything=False)
        assert opened(on(small(5), tmp_path / f"c-{n}", address))[1] == 4
        assert Storage(address).complete() == ["000003", "000004"]
        n += 1
    assert n > 20


def test_an_edited_checkpoint_is_refused_and_the_one_before_taken(small, tmp_path, caplog):
    config = on(small(3), tmp_path / "a")
    copy, _ = opened(config)
    for iteration in (1, 2):
        make(config, iteration)
        copy._send(everything=False)
    store = Storage(ADDRESS)
    for name, left in (("000002", 1), ("000001", 0)):
        tensors = f"checkpoints/{name}/{checkpoint.TENSORS}"
        held = store.read(tensors)
        store.write(tensors, held[:-1] + bytes([held[-1] ^ 1]))
        again = on(small(3), tmp_path / f"b-{name}")
        with caplog.at_level(logging.WARNING, "sdr1"):
            if left:
                assert opened(again)[1] == left
            else:
                with pytest.raises(UserError, match=r"is not what was written .* no earlier one is good"):
                    opened(again)
        assert f"{name}: {checkpoint.TENSORS} is not what was written (sha256 differs)" in caplog.text


def test_the_folder_wins_only_where_it_is_the_same_run_and_further(small, tmp_path, capsys):
    config = on(small(9), tmp_path / "a")
    copy, _ = opened(config)
    make(config, 1)
    make(config, 2)
    copy._send(everything=False)
    make(config, 3)
    # The store was away: what is here is more of the same.
    copy, start = opened(config)
    assert start == 3
    copy._send(everything=False)
    assert Storage(ADDRESS).complete() == ["000002", "000003"]
    # Another machine went on meanwhile, and this one had made an iteration of its own.
    other = on(small(9), tmp_path / "b")
    theirs, _ = opened(other)
    make(other, 4, kind=1)
    theirs._send(everything=False)
    make(config, 4)
    make(config, 5)
    copy, start = opened(config)
    assert start == 5, "what took longer stays"
    assert checkpoint.newest(tmp_path / "a").state.result.buffer[0] == 5
    assert f"1 iterations further than the copy at {ADDRESS}" in capsys.readouterr().out
    assert opened(other)[1] == 4, "until it is sent"
    copy, _ = opened(config)
    copy._send(everything=False)
    copy._send(everything=True)
    assert opened(on(small(9), tmp_path / "d"))[1] == 5
    assert [checkpoint.load(each).state.result.buffer[0] for each in checkpoint.complete(tmp_path / "d")] == [
        4,
        5,
    ]
    # Both go on, and the other sends first.
    theirs, start = opened(other)
    assert start == 5
    make(other, 6, kind=1)
    theirs._send(everything=False)
    make(config, 6)
    write_text(tmp_path / "a" / "samples" / "000007-safe.png", "picture")
    _, start = opened(config)
    assert start == 6
    assert checkpoint.newest(tmp_path / "a").state.result.buffer[0] == 16
    assert (tmp_path / "a" / NAME).read_bytes() == contents()[NAME]
    assert not (tmp_path / "a" / "samples" / "000007-safe.png").exists()
    # A folder of another run.
    strange = on(small(9), tmp_path / "c", "memory://bucket/other")
    opened(strange)
    make(strange, 1, kind=2)
    with pytest.raises(UserError, match="holds another run than run.directory"):
        opened(on(small(9), tmp_path / "c"))


def test_other_settings_cut_the_record_there_too(small, tmp_path):
    config = on(small(9), tmp_path / "a")
    copy, _ = opened(config)
    for iteration in (1, 2, 3):
        make(config, iteration)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "000003")
    write_text(tmp_path / "a" / "run.json", '{"mlflow_run_id": "0"}')
    copy._send(everything=False)
    opened(on(small(9), tmp_path / "b", seed=1))
    there = contents()
    assert len(there[NAME].splitlines()) == 2
    assert "run.json" not in there
    assert "samples/000003-safe.png" not in there
    assert json.loads(there["sdr1-run.json"])["config"]["seed"] == 1


def test_a_store_that_goes_away_costs_nothing_but_the_copy(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "_POLL", 0.01)
    monkeypatch.setattr(mirror, "_LONGEST_PAUSE", 0.01)
    config = on(small(2), tmp_path / "a")
    with monkeypatch.context() as away:
        started = []

        def refuse(self, tensors, name):
            if started or "checkpoints" in name:
                started.append(name)
                raise OSError("the store is on fire")
            return put(self, tensors, name)

        put = Storage.put
        away.setattr(Storage, "put", refuse)
        with pytest.raises(
            TrainingError,
            match=rf"run.storage: {ADDRESS}: the store is on fire; all of it is in {tmp_path}/a",
        ):
            train(config, local=True)
    assert caplog.text.count("training goes on") == 1
    assert Storage(ADDRESS).complete() == []
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert train(config, local=True).weights_sha256 == summary["weights_sha256"]
    assert contents()["summary.json"] == (tmp_path / "a" / "summary.json").read_bytes()
    assert Storage(ADDRESS).complete() == ["000001", "000002"]


def test_who_is_taken_over_stops(small, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_POLL", 0.01)
    first, second = on(small(9), tmp_path / "a"), on(small(9), tmp_path / "b")
    with run_folder.held(first):
        run_folder.starting_point(first)

    def race():
        with Mirror(first):
            opened(second)
            make(first, 1)

    with pytest.raises(TrainingError, match="another start has taken this run over .*this one stops"):
        race()
    assert Storage(ADDRESS).complete() == []


def test_a_slow_line_loses_no_checkpoint_that_is_pruned_meanwhile(small, tmp_path, monkeypatch):
    config = on(small(9), tmp_path / "a")
    copy, _ = opened(config)
    put = Storage.put

    def slow(self, file, name):
        if name.endswith(f"000001/{checkpoint.TENSORS}"):
            for iteration in (2, 3, 4):
                make(config, iteration)
            assert not (tmp_path / "a" / "checkpoints" / "000001").exists()
        put(self, file, name)

    monkeypatch.setattr(Storage, "put", slow)
    make(config, 1)
    copy._send(everything=True)
    assert Storage(ADDRESS).complete() == ["000003", "000004"]
    assert opened(on(small(9), tmp_path / "b"))[1] == 4
    assert not list((tmp_path / "a").glob(".*partial"))


def test_what_is_not_ours_is_refused_and_untouched(small, tmp_path):
    store = Storage(ADDRESS)
    store.write("thesis.txt", b"mine")
    with pytest.raises(
        UserError, match=f"run.storage: {ADDRESS}: is not empty and holds no training run of sdr1"
    ):
        train(on(small(1), tmp_path / "a"), local=True)
    assert contents() == {"thesis.txt": b"mine"}
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_look_at_an_address_does_not_list_all_that_is_there(small, tmp_path, monkeypatch, kind):
    """A bucket of a million objects of somebody's, or a run with as many pictures, costs a few requests."""
    address = f"{kind}://{tmp_path}/store"
    store, asked = Storage(address), []
    find, ls = DirFileSystem.find, type(store._fs.fs).ls
    monkeypatch.setattr(
        DirFileSystem, "find", lambda self, path, **options: asked.append(path) or find(self, path, **options)
    )
    monkeypatch.setattr(
        type(store._fs.fs), "ls", lambda self, path, *a, **o: asked.append(path) or ls(self, path, *a, **o)
    )
    assert not run_folder.is_stored(address), "nothing is there"
    for n in range(20):
        store.write(f"photographs/{n}/picture.png", b"mine")
    asked.clear()
    with pytest.raises(UserError, match="is not empty and holds no training run"):
        run_folder.is_stored(address)
    assert len(asked) < 5
    store.remove("photographs/0/picture.png")
    for n in range(1, 20):
        store.remove(f"photographs/{n}/picture.png")
    config = on(small(9), tmp_path / "a", address)
    copy, _ = opened(config)
    make(config, 1)
    copy._send(everything=False)
    asked.clear()
    assert run_folder.is_stored(address)
    assert asked
    assert all("checkpoints" in str(path) for path in asked)


def test_a_copy_is_not_made_where_the_run_lies(small, tmp_path):
    for place in (tmp_path / "a", tmp_path / "a" / "copy", tmp_path):
        with pytest.raises(UserError, match=r"run.storage: file://.*: is where run.directory .* lies"):
            train(on(small(1), tmp_path / "a", f"file://{place}"), local=True)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_checkpoints_are_gone_is_not_written_over(small, tmp_path):
    """A model that took hours is not exchanged for another run's."""
    theirs = small(1)
    train(theirs, local=True)
    shutil.rmtree(theirs.run.directory / "checkpoints")
    before = {path: path.read_bytes() for path in theirs.run.directory.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run whose checkpoints are gone; choose another address"):
        train(on(small(1), tmp_path / "a", f"file://{theirs.run.directory}"), local=True)
    assert {path: path.read_bytes() for path in theirs.run.directory.rglob("*") if path.is_file()} == before


def test_what_a_person_put_beside_a_run_stays(small, tmp_path):
    """Beside the copy's pictures, and beside the folder's checkpoints when the copy takes their place."""
    config = on(small(9), tmp_path / "a")
    copy, _ = opened(config)
    make(config, 1)
    copy._send(everything=False)
    store = Storage(ADDRESS)
    for name in ("samples/mine.png", "run.json.old"):
        store.write(name, b"mine")
    other = on(small(9), tmp_path / "b")
    theirs, _ = opened(other)
    kept = [tmp_path / "a" / "checkpoints" / name for name in ("000001-best/weights", "notes.txt")]
    for path in kept:
        write_text(path, "mine")
    make(other, 2, kind=1)
    theirs._send(everything=False)
    _, start = opened(config)
    assert start == 2
    assert [path.read_text() for path in kept] == ["mine", "mine"]
    assert {contents()[name] for name in ("samples/mine.png", "run.json.old")} == {b"mine"}


def test_a_run_that_is_there_goes_on_only_when_asked(small, tmp_path):
    config = on(small(1), tmp_path / "a")
    opened(config)
    make(config, 1)
    opened(config)[0]._send(everything=True)
    before = contents()
    never = validate({**on(small(1), tmp_path / "b").model_dump(mode="json"), "run": {
        "directory": str(tmp_path / "b"), "storage": ADDRESS, "resume": "never"}})  # fmt: skip
    with pytest.raises(UserError, match=f"run.storage: {ADDRESS}: holds a run; add run.resume=auto"):
        run_folder.check(never)
    assert contents() == before


def test_nobody_writes_beside_the_folder(small, tmp_path):
    """Names in a store are no paths: one that leads out of the folder, or that is no output of ours, is left there."""
    config = on(small(3), tmp_path / "a")
    copy, _ = opened(config)
    make(config, 1)
    copy._send(everything=False)
    store = fsspec.filesystem("memory").store
    held = store[f"/bucket/run/{NAME}"]
    for name in ("model/../../../evil", "../evil", "model/.hidden", "notes.txt"):
        store[f"/bucket/run/{name}"] = held
    opened(on(small(3), tmp_path / "b" / "c"))
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "b" / "c" / "notes.txt").exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("storage", "bucket/run", "run.storage: 'bucket/run': is no address; write it as s3://bucket/folder"),
        ("storage", "s3://", "run.storage: 's3://': is no address"),
        ("storage", "s3://key:hunter2@bucket/run", "run.storage: credentials or options in an address"),
        ("storage", "s3://bucket/run?secret=hunter2", "run.storage: credentials or options in an address"),
        (
            "directory",
            "s3://key:hunter2@bucket/run",
            r"run.directory: s3://...: is an address; set run.storage to it",
        ),
    ],
)
def test_an_address_that_cannot_be_is_one_line_without_its_secrets(field, value, told):
    with pytest.raises(UserError, match=told) as error:
        validate({"run": {field: value}})
    assert "hunter2" not in str(error.value)


def test_a_store_without_its_library_is_named_before_anything_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    for address, told in (
        ("s3://bucket/run", r"run.storage: s3://bucket/run: needs s3fs; pip install 'sdr1\[s3\]'"),
        ("nowhere://bucket/run", "run.storage: nowhere://bucket/run: Protocol not known: nowhere; give one"),
    ):
        with pytest.raises(UserError, match=told):
            train(on(small(1), tmp_path / "a", address), local=True)
    assert not (tmp_path / "a").exists()


def test_an_address_to_resume_has_to_hold_a_run(small, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(
        "sdr1.training.run.train",
        lambda config, **_: started.append(config) or SimpleNamespace(weights_sha256="0"),
    )
    smoke = str(Path(__file__).parents[2] / "configs" / "sandbox-smoke.yaml")
    assert cli.main(["train", smoke, "--resume", ADDRESS]) == 2
    told = f"error: --resume: '{ADDRESS}': holds no checkpoints; give the address of a run's copy\n"
    assert capsys.readouterr().err == told
    config = on(small(3), tmp_path / "a")
    copy, _ = opened(config)
    make(config, 1)
    copy._send(everything=False)
    assert cli.main(["train", smoke, "--resume", ADDRESS]) == 0
    assert (started[0].run.storage, started[0].run.resume) == (ADDRESS, "auto")
