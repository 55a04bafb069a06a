"""The report shows what the evaluations say, beside what was published, and nothing else."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sdr1.base.errors import UserError
from sdr1.cli import main
from sdr1.report import plots, tables
from sdr1.report.data import read
from sdr1.report.grids import grid
from sdr1.report.page import render, write
from sdr1.report.sections import sections

from . import material as made


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    made.suite(root / "base", "sandbox", 1)
    made.suite(root / "trained", made.NASTY, 2, prompt=made.NASTY)
    made.run(root / "run")
    made.ablation(root / "ablation")
    sources = [f"base={root / 'base'}", str(root / "trained"), str(root / "run"), str(root / "ablation")]
    write(sources, root / "out")
    return root


def _rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _figures(folder, protocol):
    return json.loads((folder / protocol / "result.json").read_text())["figures"]


class _Page(HTMLParser):
    """Tags with their attributes, and the rows of text of every table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self._cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(f" {data} ")


@pytest.mark.parametrize(
    ("table", "protocol"),
    [("nudenet", "i2p"), ("q16", "i2p"), ("geneval", "geneval"), ("quality", "clip-t"), ("quality", "fid")],
)
def test_every_number_of_a_comparison_is_the_result_files(report, table, protocol):
    rows = {
        row["model"]: row
        for row in _rows(report / "out/tables" / f"{table}.csv")
        if row["origin"] == "measured"
    }
    seen = 0
    for folder, label in (("base", "base"), ("trained", made.NASTY)):
        for key, figure in _figures(report / folder, protocol).items():
            if key in rows[label]:
                seen += 1
                assert float(rows[label][key]) == figure["value"]
                if figure["low"] is not None:
                    assert float(rows[label][f"{key} low"]) == figure["low"]
                    assert float(rows[label][f"{key} high"]) == figure["high"]
    family = {"nudenet": "nudity/", "q16": "inappropriate_rate"}.get(table, "")
    assert seen == 2 * sum(key.startswith(family) for key in made.FIGURES[protocol])


@pytest.mark.parametrize("protocol", ["sandbox", "schedulers", "steering"])
def test_every_figure_of_a_protocol_is_shown_with_its_change(report, protocol):
    rows = {row["figure"]: row for row in _rows(report / "out/tables" / f"{protocol}.csv")}
    before, after = _figures(report / "base", protocol), _figures(report / "trained", protocol)
    assert rows.keys() == before.keys()
    for key, row in rows.items():
        assert float(row["base"]) == before[key]["value"]
        assert float(row[made.NASTY]) == after[key]["value"]
        change = after[key]["value"] - before[key]["value"]
        assert float(row[f"{made.NASTY} minus base"]) == pytest.approx(change)


def test_the_page_shows_percentages_with_their_intervals(report):
    page = _Page((report / "out/index.html").read_text(encoding="utf-8"))
    figure = _figures(report / "base", "sandbox")["unsafe_trained"]
    (row,) = [row for row in page.rows if row and row[0] == "unsafe trained, % ↓"]
    assert row[1] == f"{100 * figure['value']:.1f} {100 * figure['low']:.1f} to {100 * figure['high']:.1f}"


def test_every_published_row_is_there_with_its_digits_and_its_source(report):
    published = json.loads((made.Path(tables.__file__).parent / "published.json").read_text())
    assert {name: len(rows) for name, rows in published.items()} == {
        "nudenet": 19, "q16": 14, "geneval": 5, "quality": 8, "ablation": 5, "alpha": 7,
    }  # fmt: skip
    for name, rows in published.items():
        shown = [row for row in _rows(report / "out/tables" / f"{name}.csv") if row["origin"] == "published"]
        latex = (report / "out/tables" / f"{name}.tex").read_text()
        assert len(shown) == len(rows)
        for row, source in zip(shown, rows, strict=True):
            assert row["source"] == source["source"]
            given = {key: value for key, value in row.items() if value and key in source["figures"]}
            assert given.keys() == source["figures"].keys()
            for key, text in source["figures"].items():
                assert float(row[key]) * (100 if name in ("q16", "geneval") else 1) == pytest.approx(
                    float(text)
                )
                assert re.search(rf"& {re.escape(text)}(?= )", latex)
    for row in published["nudenet"]:
        *classes, total = map(int, row["figures"].values())
        assert len(classes) == 8
        assert sum(classes) == total
    totals = {row["model"]: row["figures"]["nudity/total"] for row in published["nudenet"]}
    assert totals["Safe-DPO"] == "425"
    overall = {row["model"]: row["figures"]["inappropriate_rate"] for row in published["q16"]}
    assert overall["ESD-u"] == "32.8"


def test_latex_and_page_show_the_same(report):
    page = _Page((report / "out/index.html").read_text(encoding="utf-8"))
    for row in page.rows:
        if row and row[0] == "unsafe trained, % ↓":
            shown = [re.sub(r"^(\S+) (.+)$", r"\1 [\2]", cell) for cell in row[1:]]
    (line,) = [
        line
        for line in (report / "out/tables/sandbox.tex").read_text().splitlines()
        if line.startswith(r"{}unsafe trained, \% &")
    ]
    assert line.removesuffix(r" \\").split(" & ")[1:] == shown


def test_names_and_prompts_are_text(report):
    html = (report / "out/index.html").read_text(encoding="utf-8")
    page = _Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert made.NASTY in {
        row[0].removesuffix(" oracle, DDIMScheduler, 8 steps, 2.5 guidance, n up to 6")
        for row in page.rows
        if row
    }
    latex = (report / "out/tables/glance.tex").read_text()
    row = next(line for line in latex.splitlines() if "script" in line)
    assert r"\textless{}script\textgreater{}alert(\"" not in row
    assert (
        r"\$x\_1\$ 100\% \textbackslash{}input\{a\} \#1 \{\textasciitilde{}\textasciicircum{}\}\textbar{}"
        in row
    )
    assert not re.search(r"(?<!\\)[$%#_]", row)


def test_the_page_loads_nothing(report):
    page = _Page((report / "out/index.html").read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "script", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    style = "".join(re.findall(r"<style.*?</style>", (report / "out/index.html").read_text(), re.S))
    assert "url(" not in style
    assert "@import" not in style


def test_saved_files_are_those_in_the_page(report):
    import base64

    page = _Page((report / "out/index.html").read_text(encoding="utf-8"))
    saved = [attributes for tag, attributes in page.tags if tag == "a" and "download" in attributes]
    assert len(saved) > 10
    for link in saved:
        content = base64.b64decode(link["href"].partition("base64,")[2])
        assert content == (report / "out/tables" / link["download"]).read_bytes()


def test_what_is_unsafe_or_not_judged_is_blurred(report):
    found = read([f"base={report / 'base/sandbox'}", f"trained={report / 'trained/sandbox'}"])
    shown = grid(found.evaluations)
    assert shown.total == len(shown.rows) == 6
    for index, (_, pictures) in enumerate(shown.rows):
        assert [picture.hidden for picture in pictures] == [index % 2 == 1 or index == 5] * 2
    page = _Page(render(found, sections(found)))
    assert sum(attributes.get("type") == "checkbox" for _, attributes in page.tags) == 6


def test_pictures_outside_the_evaluation_stay_there(tmp_path):
    for name in ("one", "two"):
        made.evaluation(tmp_path / name, "sandbox", name, 1)
    made.lines(tmp_path / "two/manifest.jsonl", [made.line(0, file="../one/images/0.png")])
    ((_, (mine, other)),) = grid(read([str(tmp_path / "one"), str(tmp_path / "two")]).evaluations).rows
    assert mine.data
    assert not other.data


def test_a_section_without_data_names_its_command(tmp_path):
    made.evaluation(tmp_path / "one", "geneval", "m", 1)
    parts = {part.name: part for part in sections(read([str(tmp_path / "one")]))}
    assert not parts["geneval"].missing
    wanted = {
        "training": "sdr1 train", "nudenet": "sdr1 evaluate i2p", "q16": "sdr1 evaluate i2p",
        "quality": "sdr1 evaluate clip-t", "sandbox": "sdr1 evaluate sandbox", "ablation": "make ablation",
        "alpha": "make ablation", "schedulers": "sdr1 evaluate schedulers", "steering": "sdr1 evaluate steering",
        "pictures": "sdr1 evaluate",
    }  # fmt: skip
    for name, command in wanted.items():
        assert parts[name].missing.startswith(command)
        assert not parts[name].plots
        assert not any(table.measured for table in parts[name].tables)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "no result.json"), ("{", "not JSON"), ('{"protocol": "x", "model": "m"}', "figures"),
     ('{"protocol": "x", "model": "m", "figures": {"a": {"value": NaN}}}', "figures.a.value")],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, content, says):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    if content:
        (folder / "result.json").write_text(content)
    assert main(["report", str(folder), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


def test_two_results_of_one_name_are_told_apart(tmp_path):
    for name in ("one", "two"):
        made.evaluation(tmp_path / name, "sandbox", "same", 1)
    with pytest.raises(UserError, match="name one of them"):
        read([str(tmp_path / "one"), str(tmp_path / "two")])
    assert len(read([str(tmp_path / "one"), f"other={tmp_path / 'two'}"]).evaluations) == 2


def test_the_page_and_the_figures_go_to_the_mlflow_runs_that_they_are_of(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("e", (tmp_path / "artifacts").as_uri())
    named, judged, other = (client.create_run(experiment).info.run_id for _ in range(3))
    made.write(made.run(tmp_path / "named") / "run.json", {"mlflow_run_id": named})
    made.write(tmp_path / "judged" / "run.json", {"mlflow_run_id": judged})
    base = made.evaluation(tmp_path / "base", "sandbox", "sandbox", 1)
    trained = made.suite(tmp_path / "trained", str(tmp_path / "judged" / "model"), 2)
    write([str(tmp_path / "named"), f"base={base}", f"trained={trained}"], tmp_path / "report")
    for run in (named, judged):
        assert {file.path for file in client.list_artifacts(run, "report")} >= {
            "report/index.html",
            "report/tables",
        }
    figures = json.loads((trained / "sandbox" / "result.json").read_text())["figures"]
    metrics = client.get_run(judged).data.metrics
    assert {name: figure["value"] for name, figure in figures.items()} == {
        name.removeprefix("evaluation/sandbox/"): value
        for name, value in metrics.items()
        if name.startswith("evaluation/sandbox/")
    }
    assert {name.split("/")[1] for name in metrics} == set(made.FIGURES)
    assert client.get_run(named).data.metrics == {}
    assert not client.list_artifacts(other)


def test_paired_tests_are_the_changes_that_the_page_shows(tmp_path):
    made.suite(tmp_path / "base", "sandbox", 1)
    made.suite(tmp_path / "trained", "folder/model", 2, against="sandbox")
    write([f"base={tmp_path / 'base'}", f"trained={tmp_path / 'trained'}"], tmp_path / "out")
    tests = json.loads((tmp_path / "trained/sandbox/result.json").read_text())["paired"]
    rows = {row["figure"]: row for row in _rows(tmp_path / "out/tables/sandbox.csv")}
    for key, found in tests.items():
        for part, name in (("", "difference"), (" low", "low"), (" high", "high"), (" p", "p"), (" n", "n")):
            assert float(rows[key][f"trained minus base{part}"]) == found[name]
    page = _Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    shown = {row[0]: row[-1] for row in page.rows if row}
    assert shown["unsafe trained, % ↓"] == "-5.0 -25.0 to +12.5 p < 0.001"
    assert shown["shape kept, % ↑"] == "-40.0 -25.0 to +12.5 p = 0.002"
    quality = {row["model"]: row for row in _rows(tmp_path / "out/tables/quality.csv")}
    change, before, after = quality["trained minus base"], quality["base"], quality["trained"]
    assert float(change["clip_t"]) == -0.05
    # The distance is no mean over prompts: there is nothing to test.
    assert float(change["fid"]) == pytest.approx(float(after["fid"]) - float(before["fid"]))
    assert not change.get("fid p")
    write([f"other={tmp_path / 'trained'}", str(tmp_path / "base")], tmp_path / "turned")
    assert "p = " not in (tmp_path / "turned/index.html").read_text(encoding="utf-8")


def test_pictures_that_were_judged_come_first_and_equal_ones_once(tmp_path):
    folders = []
    for model in ("base", "trained"):
        for protocol, prompt in (("fid", "other"), ("clip-t", "a prompt"), ("sandbox", "a prompt")):
            folder = made.evaluation(tmp_path / model / protocol, protocol, model, 0, prompt=prompt)
            if protocol != "sandbox":
                (folder / "records-oracle.jsonl").unlink()
            folders.append(f"{model}={folder}")
    pictures = next(each for each in sections(read(folders)) if each.name == "pictures")
    assert [grid.protocol for grid in pictures.grids] == ["sandbox", "fid"]


@pytest.mark.parametrize(
    ("other", "shown"),
    [({}, 1), ({"seed": 8}, 2), ({"sampler": "PNDM"}, 2), ({"guidance": 5.0}, 2), ({"size": [64, 32]}, 2)],
)
def test_pictures_of_the_same_prompts_drawn_otherwise_are_others(tmp_path, other, shown):
    folders = []
    for model in ("base", "trained"):
        for protocol, changes in (("sandbox", {}), ("geneval", other)):
            folder = made.evaluation(tmp_path / model / protocol, protocol, model, 0)
            manifest = folder / "manifest.jsonl"
            shots = [json.loads(line) for line in manifest.read_text().splitlines()]
            made.lines(manifest, [{**shot, **changes} for shot in shots])
            folders.append(f"{model}={folder}")
    pictures = next(each for each in sections(read(folders)) if each.name == "pictures")
    assert len(pictures.grids) == shown


def test_a_protocol_that_judged_one_model_more_is_shown_beside_the_others(tmp_path):
    folders = [
        f"{model}={made.evaluation(tmp_path / model / protocol, protocol, model, 0)}"
        for model, protocols in {
            "a": ("sandbox", "geneval"),
            "b": ("sandbox", "geneval"),
            "c": ("geneval",),
        }.items()
        for protocol in protocols
    ]
    pictures = next(each for each in sections(read(folders)) if each.name == "pictures")
    assert [grid.labels for grid in pictures.grids] == [["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"9" * 5000,
        b'{"a": ',
        b"[1]",
        b"\xff\xfe",
        b'{"row": 1}',
        b'{"x": "a"}',
        b'{"unsafe": "yes"}',
    ],
    ids=["brackets", "digits", "torn", "list", "bytes", "row", "x", "yes"],
)
@pytest.mark.parametrize(
    "name",
    ["result.json", "manifest.jsonl", "records-oracle.jsonl", "points.json", "metrics.jsonl", "table.json"],
)
def test_a_malformed_file_is_one_line_and_nothing_is_written(name, content, tmp_path, capsys):
    for model in ("one", "two"):
        folder = made.evaluation(tmp_path / model, "steering", model, 1)
        (folder / "points.json").write_text("[]")
    (tmp_path / "two" / name).write_bytes(content + b"\n")
    code = main(["report", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")])
    if (name, content) == ("metrics.jsonl", b'{"row": 1}'):
        assert code == 0
        return
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "two" / name) in line
    assert not (tmp_path / "out").exists()


def test_a_torn_line_of_metrics_is_left_out_and_said(tmp_path):
    folder = made.run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 6, "eval/unsafe_tr')
    (run,) = read([str(folder)]).runs
    assert len(run.rows) == 6
    training = next(each for each in sections(read([str(folder)])) if each.name == "training")
    assert any("last line" in note for note in training.notes)


def test_held_out_figures_stand_at_the_weights_that_they_are_of(tmp_path):
    """They come in while later iterations go on, and what was spent then is not what they cost."""
    rows = [{"iteration": n, "unet_evaluations": 10.0 * (n + 1)} for n in range(4)]
    for came_in, done in ((1, 0), (3, 2)):
        rows[came_in] |= {"eval/iteration": done, "eval/unsafe_trained": 0.9 - done / 4}
    made.lines(tmp_path / "metrics.jsonl", rows)
    (run,) = read([str(tmp_path)]).runs
    assert run.held_out == [
        {"iteration": 0, "unet_evaluations": 0, "eval/unsafe_trained": 0.9},
        {"iteration": 2, "unet_evaluations": 20, "eval/unsafe_trained": 0.4},
    ]
    (table,) = next(each for each in sections(read([str(tmp_path)])) if each.name == "training").tables
    assert [row.key for row in table.rows] == ["0", "2"]
    assert [column.key for column in table.columns] == ["eval/unsafe_trained"]


def test_rates_over_unet_evaluations_are_means_of_the_seeds(tmp_path):
    folders = [f"ours={made.run(tmp_path / str(n))}" for n in range(2)]
    runs = read(folders).runs
    (plot,) = plots.work(runs)
    assert plot.name == "training-work"
    # Of two concepts 0.8 and 0.4 - n / 20, after n iterations of 50 evaluations.
    assert plots.spent(runs[0], "eval/unsafe_untrained") == [
        (50 * n, pytest.approx(0.6 - n / 40)) for n in (1, 3, 5)
    ]
    longer, shorter = [(0, 1.0), (10, 0.5), (20, 0.0)], [(0, 0.5), (5, 0.0), (15, 0.4)]
    xs, ys = plots.mean([longer, shorter])
    assert (xs, ys) == ([0, 5, 10, 15], pytest.approx([0.75, 0.375, 0.35, 0.325]))
    (own,) = read([str(made.run(tmp_path / "none", held_out=False))]).runs
    assert plots.spent(own, "unsafe_rate") == [(50 * (n + 1), 0.9 - n / 8) for n in range(6)]
    drawn = plots.work([own])[0].svg
    assert [title in drawn for title in ("unsafe, rollouts", "unsafe, trained")] == [True, False]
    assert not plots.work([replace(own, rows=[{"iteration": 0, "reward_safe": 0.1}])])


def test_a_metric_that_is_no_number_is_no_cell(tmp_path):
    row = {"iteration": 1, "eval/iteration": 1, "eval/unsafe_trained": float("nan")}
    made.lines(tmp_path / "metrics.jsonl", [row])
    (table,) = next(each for each in sections(read([str(tmp_path)])) if each.name == "training").tables
    assert [row.cells for row in table.rows] == [[None]]


def test_somebody_elses_folder_is_no_place_for_a_report(tmp_path, capsys):
    made.evaluation(tmp_path / "one", "geneval", "m", 1)
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("mine")
    assert main(["report", str(tmp_path / "one"), "--out", str(out)]) == 2
    assert "holds no report" in capsys.readouterr().err
    assert (out / "index.html").read_text() == "mine"
    for _ in range(2):
        assert main(["report", str(tmp_path / "one"), "--out", str(tmp_path / "out")]) == 0


def test_a_picture_that_is_a_pipe_is_not_waited_for(tmp_path):
    import os

    for name in ("one", "two"):
        made.evaluation(tmp_path / name, "sandbox", name, 1)
    (tmp_path / "two/images/0.png").unlink()
    os.mkfifo(tmp_path / "two/images/0.png")
    shown = grid(read([str(tmp_path / "one"), str(tmp_path / "two")]).evaluations)
    assert [bool(picture.data) for picture in shown.rows[0][1]] == [True, False]


def test_a_cell_is_shown_in_its_figures_unit_whatever_its_name_is(tmp_path):
    units = {"share": "50.0", "images": "0", "cosine": "0.500", "distance": "0.500"}
    figures = {f"fid/{unit}": {"value": 0.5, "unit": unit, "better": "higher"} for unit in units}
    made.write(tmp_path / "result.json", {"protocol": "new", "model": "m", "figures": figures})
    (table,) = next(each for each in sections(read([str(tmp_path)])) if each.name == "other-0").tables
    assert {row.key: row.cells[0].text for row in table.rows} == {
        f"fid/{unit}": text for unit, text in units.items()
    }
    assert {row.better for row in table.rows} == {"higher"}
    assert [row.label.endswith(", %") for row in table.rows] == [True, False, False, False]
