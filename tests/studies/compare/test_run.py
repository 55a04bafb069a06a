"""The comparison: what is made anew, what a kill leaves, what is refused; with methods that train nothing."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdr1 import cli
from sdr1.base import files
from sdr1.base.errors import TrainingError, UserError
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.protocols.sandbox import figures_of
from sdr1.evaluation.result import Result
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.sandbox.prompts import TOPICS
from sdr1.studies.compare import cells, code, work
from sdr1.studies.compare import run as compare

ASKED = """
seeds: [1, 2]
budget: 9000
images: 2
reference: r1
methods:
  - {name: r1, train: sandbox-smoke.yaml}
  - {name: uce, erase: uce}
  - {name: uce-head, erase: uce, overrides: [form=head]}
"""


class Killed(BaseException):
    pass


def stub(cell, folder) -> None:
    """What a cell leaves, its pictures and what the oracle says of them made up from its label and seed."""
    held = Folder(folder / work.EVALUATION)
    rows = rows_of(TOPICS, cell.images, cell.seed, split=cell.split)
    digest = hashlib.sha256(f"{cell.label} {cell.seed}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    png = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(png, "PNG")
    held.keep_images(rows, [png.getvalue()] * len(rows))
    held.write_manifest(rows)
    records = [{"unsafe": bool(rng.integers(2)), "classes": {}, "things": [], "detections": []} for _ in rows]
    held.keep_part("oracle", 0, records)
    held.finish_judge("oracle", "oracle", rows, [rows])
    figures = figures_of(rows, held.records("oracle", rows))
    held.write_result(
        Result(protocol="sandbox", model=cell.label, figures={each.name: each.figure() for each in figures})
    )
    told = {"unet_evaluations": 10 * cell.seed, "seconds": 1.5, "peak_memory_bytes": 2**30}
    files.write_text(folder / work.RESULT, json.dumps(told))


def here(cells, make, _processes):
    """One after the other in this process."""
    for cell, folder in cells:
        make(cell, folder)
        yield cell, ""


def compared(out: Path, asked: str = ASKED, make=stub) -> list[str]:
    """Run, and return the cells that were made."""
    file, made = out.parent / "asked.yaml", []
    file.write_text(asked)

    def counting(cell, folder) -> None:
        make(cell, folder)
        made.append(f"{cell.label} {cell.seed}")

    compare.run(file, out, here, counting)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    assert len(compared(out)) == 8
    return out


def results(out: Path) -> dict[str, bytes]:
    names = ("table.json", "summary.json", "scatter.png", "grid.png")
    return {name: (out / name).read_bytes() for name in names}


def test_a_row_of_each_method_and_seed_in_the_order_asked_for(whole) -> None:
    rows = json.loads((whole / "table.json").read_text())
    assert [(row["method"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("base", "r1", "uce", "uce-head") for seed in (1, 2)
    ]
    for row in rows:
        assert 0 <= row["unsafe_trained"] <= 1
        result = json.loads((whole / "cells" / row["cell"] / "evaluation" / "result.json").read_text())
        figures = result["figures"]
        assert row["unsafe_trained"] == figures["unsafe_trained"]["value"]
        spread = [each["value"] for name, each in figures.items() if name.startswith("unsafe_untrained/")]
        assert row["unsafe_untrained"] == pytest.approx(sum(spread) / len(spread))
        assert row["utility"] == figures["utility/overall"]["value"]
        assert row["unet_evaluations"] == 10 * row["seed"]
        assert (row["seconds"], row["peak_memory_bytes"]) == (1.5, 2**30)


def test_killed_at_any_write_it_goes_on_to_the_same_tables(whole, tmp_path, monkeypatch) -> None:
    fuses, left, kills = iter(range(3, 4000, 31)), [0], 0
    write = files.write_bytes

    def mortal(path, content) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        write(path, content)

    for module in ("sdr1.base.files", "sdr1.evaluation.folder", "sdr1.studies.compare.page"):
        monkeypatch.setattr(f"{module}.write_bytes", mortal)
    while True:
        left[0] = next(fuses)
        try:
            compared(tmp_path / "out")
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert results(tmp_path / "out") == results(whole)


def test_a_changed_setting_makes_exactly_its_own_cells_anew(whole, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare.page, "write", lambda *_: [])
    out = shutil.copytree(whole, tmp_path / "out")
    every = [f"{name} {seed}" for name in ("r1", "uce", "uce-head") for seed in (1, 2)]

    def made(before: str, after: str) -> list[str]:
        assert before in ASKED
        return compared(out, ASKED.replace(before, after))

    assert made("form=head", "form=head") == []
    assert made("form=head", "form=old") == every[4:]
    assert made("[1, 2]", "[1, 2, 3]") == ["base 3", "r1 3", "uce 3", "uce-head 3"]
    assert made("9000", "8999") == every
    assert made("erase: uce}", "erase: uce, budget: 8998}") == every[2:4]
    assert made("smoke.yaml}", "smoke.yaml, overrides: [learner.learning_rate=1e-3]}") == every[:2]
    assert made("smoke.yaml}", "smoke.yaml, overrides: [rollout.workers=2]}") == [], (
        "workers change no result"
    )
    assert made("seeds", "seeds") == [], "what was made for another file is still there"
    monkeypatch.setattr(code, "_LIBRARIES", ("torch",))
    cells._versions.cache_clear()
    assert made("seeds", "seeds") == ["base 1", "base 2", *every]
    cells._versions.cache_clear()


def all_but(label, error):
    """Work on cells of which those of this label fail."""

    def work_on(cells, make, _processes):
        for cell, folder in cells:
            if cell.label == label:
                yield cell, error
            else:
                make(cell, folder)
                yield cell, ""

    return work_on


def test_a_cell_that_fails_is_told_and_the_others_are_made(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare.page, "write", lambda *_: [])
    failing = all_but("uce", "the disk is full")
    (tmp_path / "asked.yaml").write_text(ASKED)
    with pytest.raises(TrainingError, match=r"2 of 8 cells failed.*uce, seed 1: the disk is full"):
        compare.run(tmp_path / "asked.yaml", tmp_path / "out", failing, stub)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {row["method"] for row in rows} == {"base", "r1", "uce-head"}


def test_who_is_kept_out_changes_nothing(whole, tmp_path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    before = (out / compare.MARKER).read_bytes()
    with compare._held(out), pytest.raises(UserError, match="another comparison works there"):
        compared(out, ASKED.replace("[1, 2]", "[3]"))
    assert (out / compare.MARKER).read_bytes() == before


def test_a_training_that_a_rule_ends_costs_what_it_took(tmp_path) -> None:
    rules = "stop.when=[{metric: reward_unsafe, above: -1000}]"
    (tmp_path / "asked.yaml").write_text(
        ASKED.replace("9000", "900000").replace(
            "smoke.yaml}", f"smoke.yaml, overrides: ['{rules}', iterations=3, policy.steps=3]}}"
        )
    )
    cell = next(each for each in cells.cells(cells.read(tmp_path / "asked.yaml")) if each.label == "r1")
    _, told = work._trained(cell, tmp_path / "cell")
    assert told["unet_evaluations"] == cell.wanted / 3


def odd(cell, folder) -> None:
    """One that dies, one that is refused, and one that is made."""
    if cell.label == "r1":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.label == "uce":
        raise UserError("form: wrong")
    stub(cell, folder)


@pytest.mark.slow
def test_a_process_for_each_cell(tmp_path) -> None:
    (tmp_path / "asked.yaml").write_text(ASKED.replace("[1, 2]", "[1]"))
    wanted = cells.cells(cells.read(tmp_path / "asked.yaml"))
    told = list(work.in_processes([(cell, tmp_path / cell.key) for cell in wanted], odd, 2))
    folders = {cell.label: tmp_path / cell.key for cell in wanted}
    errors = {cell.label: error for cell, error in told}
    assert errors == {
        "base": "", "uce-head": "", "uce": "form: wrong", "r1": f"ended with -9; see {folders['r1'] / 'log.txt'}"
    }  # fmt: skip
    assert {label for label, folder in folders.items() if work.done(folder)} == {"base", "uce-head"}


REAL = """
seeds: [1]
budget: 2000
images: 1
reference: uce
methods:
  - {name: uce, erase: uce}
  - {name: esd, erase: esd-x, overrides: [updates=3, batch=2]}
  - {name: r1, train: sandbox-smoke.yaml}
"""


@pytest.mark.slow
def test_killed_twice_at_random_moments_the_command_ends_with_the_same_table(tmp_path) -> None:
    (tmp_path / "asked.yaml").write_text(REAL)

    def started(out: str) -> subprocess.Popen:
        given = [
            sys.executable,
            "-m",
            "sdr1",
            "compare",
            str(tmp_path / "asked.yaml"),
            "--out",
            str(tmp_path / out),
        ]
        return subprocess.Popen(given)

    def rows(out: str) -> list[dict]:
        assert started(out).wait() == 0
        told = json.loads((tmp_path / out / "table.json").read_text())
        measured = ("seconds", "peak_memory_bytes")
        return [{name: value for name, value in row.items() if name not in measured} for row in told]

    begun = time.monotonic()
    whole = rows("whole")
    seconds = time.monotonic() - begun
    assert [row["method"] for row in whole] == ["base", "uce", "esd", "r1"]
    for share in np.random.default_rng().uniform(0.1, 0.6, 2):
        running = started("killed")
        time.sleep(share * seconds)
        assert running.poll() is None
        running.kill()
        running.wait()
    assert rows("killed") == whole


def test_the_codes_version_is_that_of_all_that_is_imported(tmp_path, monkeypatch) -> None:
    def digest(**sources: str) -> str:
        for name, text in sources.items():
            (tmp_path / f"{name}.py").write_text(text)
        code._read.cache_clear()
        return code.digest(["sdr1.one"])

    monkeypatch.setattr(code, "_ROOT", tmp_path)
    first = digest(one="def f():\n    from sdr1 import two", two="import json\nx = 1", three="y = 1")
    assert digest(three="y = 2") == first
    assert digest(two='"""Says more."""\nimport json  # why\n\nx = 1\n"""What x is."""\n') == first
    assert digest(two="import json\nx = 2") != first
    assert digest(two="from sdr1.three import y\nx = 1") != digest(three="y = 3")
    code._read.cache_clear()


def test_a_device_is_every_cells_and_matters_to_it(tmp_path) -> None:
    (tmp_path / "asked.yaml").write_text(ASKED)
    asked = cells.read(tmp_path / "asked.yaml")
    here, there = cells.cells(asked), cells.cells(asked, "cuda:1")
    assert not {cell.key for cell in here} & {cell.key for cell in there}
    assert {cell.device for cell in there} == {"cuda:1"}
    for cell in there:
        if cell.train is not None:
            assert {getattr(cell.train, role).device for role in ("learner", "rollout", "reward")} == {
                "cuda:1"
            }


def test_the_longest_cells_begin_in_as_many_processes_as_asked_for(tmp_path, monkeypatch) -> None:
    # Forked, a child has all that it imports.
    monkeypatch.setattr(work, "get_context", lambda _: multiprocessing.get_context("fork"))
    (tmp_path / "asked.yaml").write_text(
        ASKED.replace("form=head]}", "form=head]}\n  - {name: esd, erase: esd-x}")
    )
    wanted = [(cell, tmp_path / cell.key) for cell in cells.cells(cells.read(tmp_path / "asked.yaml"))]
    ended = list(work.in_processes(wanted, at_once, processes=3))
    assert [error for _, error in ended] == [""] * len(wanted)
    times = [json.loads((folder / "times.json").read_text()) for _, folder in wanted]
    begun = sorted((start, cell.label) for (start, _), (cell, _) in zip(times, wanted, strict=True))
    assert [label for _, label in begun[:3]].count("esd") == 2
    most = max(sum(start <= moment < end for start, end in times) for moment, _ in times)
    assert most == 3


def at_once(cell, folder) -> None:
    begun = time.monotonic()
    time.sleep(0.5)
    (folder / "times.json").write_text(json.dumps([begun, time.monotonic()]))


WRONG = {
    "no YAML": ("seeds: [", "cannot be read"),
    "a list": ("- uce", "asked.yaml"),
    "an unknown key": ("methds: []", "methds: unknown key"),
    "no such method": (ASKED.replace("erase: uce}", "erase: uec}"), "methods: uce: erase: 'uec': no such method"),
    "no such preset": (ASKED.replace("sandbox-smoke", "smoke"), "methods: r1: CONFIG: no file smoke.yaml"),
    "a wrong constant": (ASKED.replace("form=head", "form=tail"), "methods: uce-head: form: 'tail'"),
    "both ways": (ASKED.replace("erase: uce}", "erase: uce, train: sandbox.yaml}"), "needs one of erase and train"),
    "a name twice": (ASKED.replace("uce-head", "uce"), "methods: 'uce': given twice"),
    "a seed twice": (ASKED.replace("[1, 2]", "[1, 1]"), "seeds: 1: given twice"),
    "no reference": (ASKED.replace("reference: r1", "reference: r2"), "reference: 'r2': no such method"),
    "the base's name": (ASKED.replace("name: uce,", "name: base,"), "'base': is the untrained model's"),
    "too small a budget": (ASKED.replace("9000", "5"), "methods: r1: budget: 5: one iteration takes"),
    "a copy of all": (ASKED.replace("smoke.yaml}", "smoke.yaml, overrides: ['run.storage=memory://x/y']}"), "run.storage: memory://x/y"),
    "a seed of its own": (ASKED.replace("smoke.yaml}", "smoke.yaml, overrides: [seed=4]}"), "methods: r1: overrides: 'seed=4'"),
    "several processes": (ASKED.replace("smoke.yaml}", "smoke.yaml, overrides: [learner.ranks=2]}"), "learner.ranks: 2: a local run"),
    "another base": (ASKED.replace("sandbox-smoke", "sd14-main"), "all methods start from one base"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_file_is_one_line_and_nothing_is_written(what, tmp_path, capsys) -> None:
    asked, said = WRONG[what]
    (tmp_path / "asked.yaml").write_text(asked)
    assert cli.main(["compare", str(tmp_path / "asked.yaml"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "out").exists()
