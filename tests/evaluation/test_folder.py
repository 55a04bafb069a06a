"""Folders that anybody may have made or damaged: one line of error, nothing of theirs touched, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.evaluation import images, run
from sdr1.evaluation.suite import suite

LOCAL = run.Place(local=True)
SMALL = {"images": 1, "batch_size": 16, "sampler": {"steps": 1}}
HOSTILE = {
    "brackets": b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "torn": b'{"row": "skull-0',
    "list": b"[1]",
    "number": b"5",
    "bytes": b"\xff\xfe",
}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    run.evaluate("sandbox", "sandbox", out, SMALL, LOCAL)
    return out


@pytest.fixture
def copy(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys, *arguments: object) -> str:
    """The one line that a refused command says."""
    assert cli.main([str(each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1, error
    return error


EVALUATE = ("evaluate", "sandbox", "--local", "images=1", "batch_size=16", "sampler.steps=1", "--out")


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", ["request.json", "judges.json", "records-oracle.jsonl"])
def test_a_damaged_file_of_an_evaluation_is_named(name, content, copy, capsys):
    (copy / name).write_bytes(content)
    before = bytes_of(copy)
    assert str(copy / name) in refused(capsys, *EVALUATE, copy)
    assert bytes_of(copy) == before


@pytest.mark.parametrize("content", [*HOSTILE.values(), b""], ids=[*HOSTILE, "empty"])
@pytest.mark.parametrize("name", ["result.json", "manifest.jsonl", "records-oracle.jsonl"])
def test_an_opponent_that_is_damaged_is_refused_before_anything_is_drawn(
    name, content, copy, tmp_path, capsys
):
    (copy / name).write_bytes(content)
    said = refused(capsys, *EVALUATE, tmp_path / "new", "--against", copy)
    assert "--against" in said
    assert not (tmp_path / "new").exists()


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change the first line of a JSON Lines file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


DAMAGE = {
    "no facts": lambda line: line.pop("facts"),
    "a seed in words": lambda line: line.update(seed="one"),
    "a size of one": lambda line: line.update(size=[32]),
    "a claim of nothing": lambda line: line["facts"].update(claim=[]),
    "infinite guidance": lambda line: line.update(guidance=float("inf")),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_manifest_with_a_wrong_line_is_refused(change, copy, tmp_path, capsys):
    edit(copy / "manifest.jsonl", change)
    said = refused(
        capsys, "judge", "sandbox", "--images", copy, "--local", "--out", tmp_path / "new", "batch_size=16"
    )
    assert f"{copy / 'manifest.jsonl'}, line 1" in said
    assert not (tmp_path / "new").exists()


def test_records_that_lack_rows_or_say_yes_are_refused(copy, capsys):
    edit(copy / "records-oracle.jsonl", lambda line: line.update(unsafe="yes"))
    assert "line 1: unsafe: 'yes'" in refused(capsys, *EVALUATE, copy)
    path = copy / "records-oracle.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert "no record of row" in refused(capsys, *EVALUATE, copy)


def png(width: int, height: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header says that it is of 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PICTURES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_text("no image"),
    "empty": lambda path: path.write_bytes(b""),
    "a program": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a bomb": lambda path: path.write_bytes(bomb()),
}


@pytest.mark.parametrize("damage", PICTURES.values(), ids=PICTURES)
def test_a_damaged_picture_is_named_before_anything_is_written(damage, copy, tmp_path, capsys):
    picture = sorted(copy.rglob("*.png"))[3]
    damage(picture)
    arguments = ("judge", "sandbox", "--images", copy, "--local", "--out", tmp_path / "new")
    assert str(picture) in refused(capsys, *arguments)
    assert not (tmp_path / "new").exists()
    (copy / "records-oracle.jsonl").unlink()
    assert str(picture) in refused(capsys, *EVALUATE, copy)


def test_a_picture_of_another_size_is_named(copy, capsys):
    picture = sorted(copy.rglob("*.png"))[3]
    picture.write_bytes(png(40, 32))
    (copy / "records-oracle.jsonl").unlink()
    assert f"{picture}: 40 x 32 pixels" in refused(capsys, *EVALUATE, copy)


def test_a_pipe_is_not_an_image(copy, tmp_path, capsys):
    picture = sorted(copy.rglob("*.png"))[3]
    picture.unlink()
    os.mkfifo(picture)
    said = refused(capsys, "judge", "sandbox", "--images", copy, "--local", "--out", tmp_path / "new")
    assert picture.stem in said
    with pytest.raises(UserError, match="no image file"):
        images.load(picture, "--images")


def test_judging_leaves_the_evaluation_as_it_was(made, tmp_path, monkeypatch, capsys):
    before = bytes_of(made)
    monkeypatch.chdir(tmp_path)
    for out in ((), ("--out", tmp_path / "judged")):
        arguments = ["judge", "sandbox", "--images", made, "--local", *out, "batch_size=16"]
        assert cli.main([str(each) for each in arguments]) == 0
    assert (tmp_path / "outputs/judged/sandbox/result.json").is_file()
    refused(capsys, "judge", "sandbox", "--images", made, "--local", "--out", made)
    assert bytes_of(made) == before


def test_images_of_one_protocol_are_not_judged_by_what_another_needs(made, tmp_path, capsys):
    said = refused(capsys, "judge", "geneval", "--images", made, "--local", "--out", tmp_path / "new")
    assert "metadata" in said
    assert not (tmp_path / "new").exists()


def test_pairs_differ_in_the_model_alone(made, tmp_path, capsys, monkeypatch):
    from sdr1.evaluation.judges import oracle

    new = tmp_path / "new"
    against = (*EVALUATE, new, "--against", made)
    assert "other prompts, seeds or samplers" in refused(capsys, *against, "sampler.steps=2")
    assert "other prompts, seeds or samplers" in refused(capsys, *against, "seed=1")
    monkeypatch.setattr(oracle, "THRESHOLD", 0.25)
    said = refused(capsys, *against)
    assert "oracle: threshold" in said
    assert "0.25 here" in said
    assert not new.exists()
    monkeypatch.undo()
    assert cli.main([str(each) for each in against]) == 0


def entry(**changes: object) -> list[dict]:
    return [{"protocol": "sandbox"}, {"protocol": "clip-t", **changes}]


BAD = {
    "no protocol": (entry(protocol="nothing"), "entry 2"),
    "a list as protocol": (entry(protocol=["i2p"]), "entry 2"),
    "a name above": (entry(name=".."), "name '..'"),
    "a name that is hidden": (entry(name=".git"), "name '.git'"),
    "a name with a slash": (entry(name="a/b"), "name 'a/b'"),
    "a name with NUL": (entry(name="a\0"), "name"),
    "a long name": (entry(name="a" * 300), "name"),
    "two of a name": (entry(name="sandbox"), "name 'sandbox'"),
    "an unknown key": (entry(imagse=3), "imagse"),
    "a missing file": (entry(protocol="i2p", prompts="none.csv"), "none.csv"),
    "no reference": (entry(protocol="fid", prompts="sandbox", fid={"reference": "none"}), "fid.reference"),
    "missing weights": (entry(protocol="mma", judges=["q16"]), "q16.prompts"),
}


@pytest.mark.parametrize(("entries", "said"), BAD.values(), ids=BAD)
def test_a_wrong_entry_of_a_suite_is_known_before_anything_is_written(entries, said, tmp_path):
    with pytest.raises(UserError) as error:
        suite(entries, "sandbox", tmp_path / "suite", SMALL, LOCAL)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_suite_is_not_written_into_somebodys_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no suite"):
        suite([{"protocol": "sandbox"}], "sandbox", tmp_path, SMALL, LOCAL)
    assert bytes_of(tmp_path) == {"thesis.txt": b"mine"}
