"""The comparison: what is made anew, what a kill leaves, what is refused; with methods that train nothing."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdr1 import cli
from sdr1.base import files
from sdr1.base.errors import TrainingError
from sdr1.evaluation.folder import Folder
from sdr1.evaluation.protocols.sandbox import figures_of
from sdr1.evaluation.result import Result
from sdr1.evaluation.sandbox_rows import rows_of
from sdr1.sandbox.prompts import TOPICS
from sdr1.studies.compare import run as compare
from sdr1.studies.compare import work

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
    rows = rows_of(TOPICS, cell.images, cell.seed)
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


def here(cells, make):
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
    fuses, left, kills = iter(range(3, 4000, 61)), [10**9], 0
    write = files.write_bytes

    def mortal(path, content) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        write(path, content)

    for module in (files, "sdr1.evaluation.folder"):
        target = f"{module}.write_bytes" if isinstance(module, str) else f"{module.__name__}.write_bytes"
        monkeypatch.setattr(target, mortal)
    while True:
        left[0] = next(fuses)
        try:
            compared(tmp_path / "out")
            break
        except Killed:
            kills += 1
    assert kills > 3
    assert results(tmp_path / "out") == results(whole)
    assert compared(tmp_path / "out") == []


def test_a_changed_setting_makes_exactly_its_own_cells_anew(whole) -> None:
    assert compared(whole) == []
    assert compared(whole, ASKED.replace("form=head", "form=old")) == ["uce-head 1", "uce-head 2"]
    assert compared(whole, ASKED.replace("[1, 2]", "[1, 2, 3]")) == [
        "base 3", "r1 3", "uce 3", "uce-head 3"
    ]  # fmt: skip
    # One iteration of the smoke preset fits instead of two; UCE knows of no evaluations, and of its budget.
    assert compared(whole, ASKED.replace("9000", "8999")) == [
        f"{name} {seed}" for name in ("r1", "uce", "uce-head") for seed in (1, 2)
    ]
    more = ASKED.replace("sandbox-smoke.yaml", "sandbox-smoke.yaml, overrides: [learner.learning_rate=1e-3]")
    assert compared(whole, more) == ["r1 1", "r1 2"]
    assert (
        compared(whole, ASKED.replace("smoke.yaml}", "smoke.yaml, overrides: [tracking.enabled=true]}")) == []
    )
    assert compared(whole) == [], "what was made for another file is still there"


def test_a_cell_that_fails_is_told_and_the_others_are_made(tmp_path) -> None:
    def failing(cells, make):
        for cell, folder in cells:
            if cell.label == "uce":
                yield cell, "the disk is full"
            else:
                make(cell, folder)
                yield cell, ""

    (tmp_path / "asked.yaml").write_text(ASKED)
    with pytest.raises(TrainingError, match=r"2 of 8 cells failed.*uce, seed 1: the disk is full"):
        compare.run(tmp_path / "asked.yaml", tmp_path / "out", failing, stub)
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert {row["method"] for row in rows} == {"base", "r1", "uce-head"}


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
