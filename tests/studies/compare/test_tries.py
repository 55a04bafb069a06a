"""Tuning: which tries are made, which is chosen, and what the comparison takes from their log."""

from __future__ import annotations

import json

import pytest

from sdr1 import cli
from sdr1.base.errors import TrainingError
from sdr1.config.files import PRESETS, load
from sdr1.erasers.run import SANDBOX_BUDGET
from sdr1.planning.counts import count
from sdr1.studies.compare import cells, tries
from sdr1.studies.compare import run as compare
from tests.studies.compare.test_run import all_but, here, stub

ASKED = """
seeds: [1, 2]
budget: 9000
images: 3
reference: uce
tuning: {seeds: [5], budget: 8000, images: 2}
methods:
  - {name: uce, erase: uce, overrides: [form=old], tries: [[], [closeness=0.3], [form=head]]}
  - {name: esd, erase: esd-x, budget: 7000, tries: [[], [learning_rate=1e-4], [updates=5]]}
  - {name: rece, erase: rece}
"""


def figures(trained: float, untrained: float, utility: float) -> dict[str, float]:
    return {"unsafe_trained": trained, "unsafe_untrained": untrained, "utility": utility}


BASE = figures(1, 1, 0.85)
KEPT, SAFER, BROKEN = figures(0.2, 0.4, 0.9), figures(0.4, 0.1, 0.8), figures(0, 0, 0.79)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([KEPT, SAFER, BROKEN], 1),
        ([KEPT, BROKEN, {}], 0),
        ([BROKEN, figures(0.3, 0.3, 0.6), figures(0, 0.1, 0.78)], 0),
        ([figures(0, 0, 0.1), figures(0.5, 0.5, 0.7)], 1),
        ([{}, KEPT, KEPT], 1),
        ([{}, {}, {}], None),
    ],
    ids=[
        "safest of those that keep",
        "failed and broken",
        "none keeps",
        "nor is useful",
        "equal",
        "all failed",
    ],
)
def test_the_chosen_try(found, chosen) -> None:
    assert tries.choose(found, BASE) == chosen


def test_utility_on_the_bound_is_kept_whatever_floats_make_of_it() -> None:
    assert tries.choose([figures(0.5, 0.5, 0.9), figures(0, 0, 0.1 + 0.7 - 1e-16)], figures(1, 1, 0.85)) == 1


def asked(tmp_path, text: str = ASKED):
    file = tmp_path / "asked.yaml"
    file.write_text(text)
    return file


def test_a_try_is_a_cell_of_its_own_on_the_tuning_split(tmp_path) -> None:
    made = cells.cells(tries.spread(cells.read(asked(tmp_path))))
    assert [cell.label for cell in made] == [
        "base",
        *(f"{name}-{n}" for name in ("uce", "esd") for n in (1, 2, 3)),
    ]
    assert {(cell.seed, cell.images, cell.split) for cell in made} == {(5, 2, "tune")}
    assert [cell.budget for cell in made] == [None, 8000, 8000, 8000, 7000, 7000, 7000]
    assert [cell.settings["form"] for cell in made[1:4]] == ["old", "old", "head"]
    assert [cell.settings["updates"] for cell in made[4:]] == [300, 300, 5]
    final = cells.cells(cells.read(asked(tmp_path)))
    assert not {cell.key for cell in made} & {cell.key for cell in final}
    assert {cell.split for cell in final} == {"final"}


def test_the_comparison_takes_what_the_tries_have_chosen(tmp_path, monkeypatch) -> None:
    file, out, shown = asked(tmp_path), tmp_path / "tries", []
    monkeypatch.setattr(compare.page, "write", lambda *given: shown.append(given) or [])
    compare.run(file, out, here, stub, tune=True)
    told = json.loads((out / "tries.json").read_text())
    rows = {row["method"]: row for row in json.loads((out / "table.json").read_text())}
    assert told["base"]["utility"] == pytest.approx(rows["base"]["utility"], abs=1e-4)
    assert [(each["method"], each["number"]) for each in told["tries"]] == [
        (name, n) for name in ("uce", "esd") for n in (1, 2, 3)
    ]
    for each in told["tries"]:
        row = rows[f"{each['method']}-{each['number']}"]
        assert each["figures"] == {name: pytest.approx(row[name], abs=1e-4) for name in each["figures"]}
    found = {
        name: [each["figures"] for each in told["tries"] if each["method"] == name] for name in ("uce", "esd")
    }
    chosen = {each["method"]: each for each in told["tries"] if each["chosen"]}
    assert {name: each["number"] - 1 for name, each in chosen.items()} == {
        name: tries.choose(each, told["base"]) for name, each in found.items()
    }

    # Another is chosen by hand, to see that it is the log that says so.
    for each in told["tries"]:
        each["chosen"] = each["number"] == 3
    (tmp_path / "log.json").write_text(json.dumps(told))
    settled, log = tries.settled(cells.read(asked(tmp_path, ASKED + "tuned: log.json\n")), tmp_path)
    made = {cell.label: cell for cell in cells.cells(settled)}
    assert (made["uce"].settings["form"], made["esd"].settings["updates"]) == ("head", 5)
    assert made["rece"].settings == cells.cells(cells.read(file))[-1].settings
    notes = log.notes([*made, "r1"], {"r1"}, told["weights"])
    assert notes[0].startswith(
        "Tuned before on cpu, with 3 tries each on the tuning split (2 pictures of a topic, seeds 5, 8,000"
    )
    assert [note.split(": ")[-1] for note in notes[1:]] == ["r1.", "rece."]
    assert notes[-1] == "Not tuned, with their own settings: rece."
    assert "These tries were made from another base than the table's." in log.notes(list(made), (), "other")


def test_a_try_that_fails_is_logged_and_not_chosen(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compare.page, "write", lambda *_: [])
    failing = all_but("uce-1", "draws what is no picture")
    with pytest.raises(TrainingError, match="uce-1"):
        compare.run(asked(tmp_path), tmp_path / "out", failing, stub, tune=True)
    first, *others = json.loads((tmp_path / "out" / "tries.json").read_text())["tries"]
    assert (first["figures"], first["chosen"]) == ({}, False)
    assert sum(each["chosen"] for each in others) == 2


def test_the_packages_methods_are_tried_equally_often_their_own_settings_first() -> None:
    shipped = cells.read(None)
    tried = [each for each in shipped.methods if each.erase is not None]
    assert all(not each.tries for each in shipped.methods if each.train is not None)
    assert {len(each.tries) for each in tried} == {5}
    assert {each.tries[0] for each in tried} == {()}
    assert all(len(set(each.tries)) == 5 for each in tried)
    made = cells.cells(tries.spread(shipped))
    assert len({cell.key for cell in made}) == len(made) == 1 + 5 * len(tried)


def test_the_packages_log_is_of_the_packages_tries() -> None:
    shipped = cells.read(None)
    _, log = tries.settled(shipped, cells.DEFAULT.parent)
    asked = [
        (each.name, number, overrides)
        for each in shipped.methods
        for number, overrides in enumerate(each.tries, 1)
    ]
    assert [(each.method, each.number, each.overrides) for each in log.tries] == asked
    for name in {name for name, *_ in asked}:
        mine = [each for each in log.tries if each.method == name]
        assert [each.chosen for each in mine].index(True) == tries.choose(
            [each.figures for each in mine], log.base
        )
        assert sum(each.chosen for each in mine) == 1


def test_the_other_rules_file_holds_what_that_rule_takes() -> None:
    """The try with the highest utility less the mean unsafe rate, where that is five points above the chosen one's."""

    def worth(each: tries.Try) -> float:
        return (
            each.figures["utility"] - (each.figures["unsafe_trained"] + each.figures["unsafe_untrained"]) / 2
        )

    _, log = tries.settled(cells.read(None), cells.DEFAULT.parent)
    taken = {}
    for chosen in filter(lambda each: each.chosen, log.tries):
        best = max((each for each in log.tries if each.method == chosen.method), key=worth)
        if worth(best) > worth(chosen) + 0.05:
            taken[chosen.method] = best.overrides
    other = cells.read(cells.DEFAULT.with_name("compare-tradeoff.yaml"))
    assert {each.name: each.overrides for each in other.methods if each.erase is not None} == taken


def test_the_packages_budget_is_what_its_preset_takes() -> None:
    shipped = cells.read(None)
    preset = load(PRESETS / "sandbox.yaml")
    taken = count(preset).total * preset.iterations
    assert taken <= SANDBOX_BUDGET < taken + 1000
    assert shipped.budget == SANDBOX_BUDGET


WRONG = {
    "not as many": (ASKED.replace("[closeness=0.3], ", ""), "methods: [2, 3] tries"),
    "no tries": ("reference: uce\nmethods: [{name: uce, erase: uce}]", "methods: no method has tries"),
    "a wrong constant": (ASKED.replace("updates=5", "updates=0"), "methods: esd-3: updates"),
    "a seed twice": (ASKED.replace("[5]", "[5, 5]"), "seeds: 5: given twice"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_tries_are_one_line_and_nothing_is_written(what, tmp_path, capsys) -> None:
    text, said = WRONG[what]
    file, out = asked(tmp_path, text), tmp_path / "out"
    assert cli.main(["compare", str(file), "--tune", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not out.exists()


def test_a_log_that_is_missing_or_none_is_one_line(tmp_path, capsys) -> None:
    file = asked(tmp_path, ASKED + "tuned: log.json\n")
    for said in ("log.json: no such file", "log.json"):
        assert cli.main(["compare", str(file), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: tuned: ")
        assert said in line
        (tmp_path / "log.json").write_text('{"tries": 3}')


def test_a_dry_run_says_what_is_left_and_writes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sdr1.studies.compare.effort.seconds_of_an_evaluation", lambda _: 0.01)
    file, out = asked(tmp_path), tmp_path / "out"
    assert cli.main(["compare", str(file), "--out", str(out), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not out.exists()
    # 6 tasks, 8 concepts and what sounds near with 3 pictures each; 8 concepts beside a shape with one; 8 guided steps.
    assert lines[-2] == "53 pictures a cell, 848 UNet evaluations to draw"
    esd = next(line for line in lines if line.startswith("esd")).split()
    assert esd[:4] == ["esd", "2", "2", "7,000"]
    total = 8 * 848 + 2 * 7000
    assert lines[-1].startswith(
        f"8 cells to make: {total:,} UNet evaluations, about {total * 0.01 / 7200:.1f} hours"
    )
    monkeypatch.setattr(compare.page, "write", lambda *_: [])
    compare.run(file, out, here, stub)
    assert cli.main(["compare", str(file), "--out", str(out), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == lines[-2]
