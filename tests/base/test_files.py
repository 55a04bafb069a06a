"""Nothing that sdr1 did not write is removed or written over."""

import os
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.base.files import hold, open_lock, refuse_foreign, remove_partial, write_text


def test_a_folder_is_used_when_it_is_new_empty_or_ours(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "new", "marker.json", "thing", "--out")
    refuse_foreign(tmp_path, "marker.json", "thing", "--out")
    write_text(tmp_path / "marker.json", "{}")
    write_text(tmp_path / "more.txt", "ours")
    refuse_foreign(tmp_path, "marker.json", "thing", "--out")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env.local").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in (
        tmp_path,
        tmp_path / "file",
        tmp_path / "file" / "below",
        tmp_path / ("n" * 300),
        tmp_path / "a\0",
    ):
        with pytest.raises(UserError, match=r"--out: .*; choose another") as error:
            refuse_foreign(folder, "marker.json", "thing", "--out")
        assert "\n" not in str(error.value)


def test_only_half_written_files_of_ours_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [tmp_path / name for name in (".env.local", ".config.json.12", "a.sdr1", "below/.x.y.z")]
    for path in kept:
        write_text(path, "mine")
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    write_text(tmp_path / "below" / "half.json", "{")
    write_text(tmp_path / "half.json", "{")
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("*half*"))) == 2
    remove_partial(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_pipe_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=f"{name} is not a regular file"):
            open_lock(tmp_path / name)
    with open_lock(tmp_path / "lock") as one, open_lock(tmp_path / "lock") as two:
        hold(one, "taken")
        with pytest.raises(UserError, match="taken"):
            hold(two, "taken")


def test_what_a_kill_left_of_the_marker_does_not_close_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    write_text(tmp_path / "marker.json", "{")
    monkeypatch.undo()
    assert list(tmp_path.iterdir())
    refuse_foreign(tmp_path, "marker.json", "thing", "--out")
