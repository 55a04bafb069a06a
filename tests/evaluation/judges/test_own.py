"""A judge of the user's own: it says what it declares, and everything that is wrong with it is said before drawing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.evaluation import run
from sdr1.evaluation.judges import build, kind, require
from sdr1.evaluation.place import Place
from sdr1.evaluation.rows import Row, Sampler

ROW = Row("0", "a red circle", 0, Sampler(), 32, 32)
IMAGES = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (10, 200)])
SMALL = {"images": 1, "batch_size": 8, "sampler": {"steps": 2}}
GOOD = """
import numpy as np

class Bright:
    says = {"unsafe", "correct", "cosine"}
    provenance = {"threshold": 100}

    def __init__(self, device):
        self.device = device

    def judge(self, images, rows):
        levels = images.mean(axis=(1, 2, 3))
        return [
            {"unsafe": level > 100, "correct": bool(level <= 100), "cosine": np.float32(level / 255), "more": 1}
            for level in levels
        ]
"""
LOCAL = Place(local=True)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes `own_judges.py`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(text: str) -> None:
        sys.modules.pop("own_judges", None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        (tmp_path / "own_judges.py").write_text(text)

    yield made
    sys.modules.pop("own_judges", None)


def test_it_says_what_it_declares(write):
    write(GOOD)
    judge = build("own_judges:Bright", None, "cpu")
    records = judge.judge(IMAGES, [ROW, ROW])
    assert json.loads(json.dumps(records)) == records
    assert [record["unsafe"] for record in records] == [False, True]
    assert [record["correct"] for record in records] == [True, False]
    assert records[1]["cosine"] == pytest.approx(200 / 255)
    assert kind("own_judges:Bright").says == {"unsafe", "correct", "cosine"} == records[0].keys()
    assert judge.provenance["judge"] == "own_judges:Bright"
    assert judge.provenance["threshold"] == 100
    assert len(judge.provenance["sha256"]) == 64


@pytest.mark.parametrize(
    ("protocol", "figure"),
    [
        ("mma", "attack_success_rate"),
        ("i2p", "inappropriate_rate_own_judges:Bright"),
        ("geneval", "overall"),
        ("clip-t", "clip_t"),
    ],
)
def test_figures_are_made_of_what_it_says(protocol, figure, write, tmp_path):
    write(GOOD)
    settings = {**SMALL, "judges": ["own_judges:Bright"]}
    result = run.evaluate(protocol, "sandbox", tmp_path / "out", settings, LOCAL)
    lines = (tmp_path / "out" / "records-own_judges.Bright.jsonl").read_text().splitlines()
    key = {"geneval": "correct", "clip-t": "cosine"}.get(protocol, "unsafe")
    assert result.figures[figure].n == len(lines)
    assert result.figures[figure].value == pytest.approx(np.mean([json.loads(line)[key] for line in lines]))


def test_a_judge_that_is_changed_judges_anew(write, tmp_path):
    settings = {**SMALL, "judges": ["own_judges:Bright"]}
    rates = []
    for text in (GOOD, GOOD.replace("level > 100", "level > -1"), GOOD.replace("level > 100", "level > 300")):
        write(text)
        result = run.evaluate("mma", "sandbox", tmp_path / "out", settings, LOCAL)
        rates.append(result.figures["attack_success_rate"].value)
    assert rates[1:] == [1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def Bright(", r"importing raised SyntaxError"),
        (
            "import nothing_of_that_name",
            r"No module named 'nothing_of_that_name'; put the module on PYTHONPATH",
        ),
        ("", r"has no attribute 'Bright'"),
        ("Bright = 3", r"a int; name a function"),
        (
            "class Bright: pass",
            r"says None; give it an attribute `says`, a set of some of unsafe, correct, cosine",
        ),
        ("class Bright: says = {'nice'}", r"says \{'nice'\}; give it"),
        ("class Bright: says = 'unsafe'", r"says 'unsafe'; give it"),
        ("class Bright: says = [[]]", r"says \[\[\]\]; give it"),
        ("class Bright: says = {'unsafe'}", r"called as factory\(device=\.\.\.\)"),
        (GOOD.replace("self.device = device", "raise OSError('no weights')"), r"raised OSError: no weights"),
        (GOOD.replace("def judge", "def look"), r"without a method judge\(images, rows\)"),
        (GOOD.replace('{"threshold": 100}', '{"x": object()}'), r"provenance: .*use a dict of plain data"),
        (GOOD.replace('{"unsafe", "correct", "cosine"}', '{"cosine"}'), r"cannot say what mma's figures"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_drawn(text, said, write, tmp_path, capsys):
    write(text)
    out = tmp_path / "out"
    assert cli.main(["evaluate", "mma", "--local", "--out", str(out), "judges=[own_judges:Bright]"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "own_judges:Bright" in error
    with pytest.raises(UserError, match=said):
        raise UserError(error)
    assert not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return [", "return 3 or [", r"raised TypeError"),
        ("for level in levels", "for level in levels[1:]", r"1 records of 2 images"),
        ("level > 100,", "1,", r"row 0: unsafe 1: give a bool"),
        ("np.float32(level / 255)", "float('nan')", r"row 0: cosine nan: give a float"),
        ('"correct": bool(level <= 100), ', "", r"row 0: correct None: give a bool"),
    ],
)
def test_records_are_looked_at(old, new, said, write):
    write(GOOD.replace(old, new))
    with pytest.raises(UserError, match=said):
        build("own_judges:Bright", None, "cpu").judge(IMAGES, [ROW, ROW])


def test_a_name_that_is_no_judge(tmp_path):
    with pytest.raises(
        UserError, match=r"judges: 'nice': no such judge; use some of .* or your own as module:factory"
    ):
        require(["nice"], frozenset({"unsafe"}), [ROW], "mma")
