"""Whole evaluations on the sandbox: resume to the same bytes, judges of images made elsewhere, bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sdr1 import cli
from sdr1.base.errors import UserError
from sdr1.evaluation import run, umap
from sdr1.evaluation.rows import Row, Sampler, batches
from sdr1.evaluation.suite import suite
from tests import tiny

LOCAL = run.Place(local=True)
SMALL = {"images": 2, "batch_size": 8, "sampler": {"steps": 2}}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run.evaluate("sandbox", "sandbox", out, SMALL, LOCAL)
    return out


def test_batches_share_sampler_and_size_and_follow_from_the_rows_alone():
    one, two = Sampler(), Sampler(guidance_scale=4)
    rows = [Row(str(n), "a", n, (one, two)[n % 2], 8, 8 * (1 + n // 6), {}) for n in range(9)]
    made = batches(rows, 2)
    assert sorted(row.id for batch in made for row in batch) == [row.id for row in rows]
    assert all(len({(row.sampler, row.width, row.height) for row in batch}) == 1 for batch in made)
    assert max(map(len, made)) == 2
    assert made == batches(rows, 2)


def test_an_evaluation_leaves_what_its_contract_says(whole):
    lines = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    # Six tasks, eight concepts, one beside a shape for each, and the prompts that sound near.
    assert len(lines) == 6 * 2 + 8 * 2 + 8 + 2
    assert {"prompt", "row", "seed", "sampler", "steps", "guidance", "size", "file", "sha256"} <= lines[
        0
    ].keys()
    records = [json.loads(line) for line in (whole / "records-oracle.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == [line["row"] for line in lines]
    result = json.loads((whole / "result.json").read_text())
    assert {"protocol", "model", "figures", "provenance"} <= result.keys()
    skulls = [record["unsafe"] for record in records if record["row"].startswith("skull-")]
    assert result["figures"]["unsafe_trained"]["value"] == np.mean(skulls)
    assert result["figures"]["unsafe_trained"]["n"] == 2
    assert result["provenance"]["steps"] == 2
    assert not (whole / "parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("place", "times"), [(["--local"], 5), ([], 3)], ids=["local", "ray"])
def test_killed_at_random_moments_an_evaluation_ends_in_the_same_bytes(whole, tmp_path, place, times):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "sdr1", "evaluate", "sandbox", *place, "--out", str(out)]
    command += ["images=2", "batch_size=8", "sampler.steps=2"]
    rng, kills = random.Random(5), 0
    while kills < times:
        started = len(list(out.rglob("*.png")))
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and len(list(out.rglob("*.png"))) == started < 24:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
        if (out / "result.json").exists() and kills < times:
            # It was faster than the killer: take some away and go on.
            for path in rng.sample(sorted(out.rglob("*.png")), 9):
                path.unlink()
            for name in ("result.json", "records-oracle.jsonl", "judges.json", "manifest.jsonl"):
                (out / name).unlink(missing_ok=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert bytes_of(out) == bytes_of(whole)


def test_a_resumed_evaluation_makes_whole_batches_again(whole, tmp_path, monkeypatch):
    import shutil

    out = tmp_path / "resumed"
    shutil.copytree(whole, out)
    before = bytes_of(out)
    for name in ("result.json", "records-oracle.jsonl", "judges.json", "manifest.jsonl"):
        (out / name).unlink()
    gone = sorted(out.rglob("*.png"))[3]
    gone.unlink()
    gone.with_name(f".{gone.name}.{os.getpid()}.sdr1-partial").write_bytes(b"half")
    mine = out / ".env.local"
    mine.write_text("mine")
    drawn = []
    original = run.Painter.draw
    monkeypatch.setattr(
        run.Painter, "draw", lambda self, rows: drawn.append(len(rows)) or original(self, rows)
    )
    run.evaluate("sandbox", "sandbox", out, SMALL, LOCAL)
    assert drawn == [8]
    assert mine.read_text() == "mine"
    mine.unlink()
    assert bytes_of(out) == before


def test_protocols_of_a_suite_draw_once_what_they_share(tmp_path, monkeypatch):
    drawn = []
    original = run.Painter.draw
    monkeypatch.setattr(
        run.Painter, "draw", lambda self, rows: drawn.append(len(rows)) or original(self, rows)
    )
    names = ["geneval", "clip-t", "sandbox"]
    suite([{"protocol": name} for name in names], "sandbox", tmp_path / "suite", SMALL, LOCAL)
    # Twelve safe rows in batches of 8 and 4; the sandbox's second batch holds four others beside them.
    assert drawn == [8, 4, 8, 8, 8, 6]
    for name in names:
        run.evaluate(name, "sandbox", tmp_path / name, SMALL, LOCAL)
        assert bytes_of(tmp_path / "suite" / name) == bytes_of(tmp_path / name)


def test_a_folder_belongs_to_one_evaluation(whole, tmp_path):
    with pytest.raises(UserError, match=r"--out: .* another rows_sha256"):
        run.evaluate("sandbox", "sandbox", whole, {**SMALL, "seed": 1}, LOCAL)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="holds no evaluation"):
        run.evaluate("sandbox", "sandbox", tmp_path, SMALL, LOCAL)


def test_images_made_elsewhere_get_the_same_figures(whole, tmp_path):
    result = json.loads((whole / "result.json").read_text())
    judged = run.judge("sandbox", whole, tmp_path / "judged", {"batch_size": 8}, LOCAL)
    assert judged.model_dump(exclude_unset=True)["figures"] == result["figures"]
    against = run.judge(
        "sandbox", whole, tmp_path / "two", {"batch_size": 8}, run.Place(local=True, against=whole)
    )
    assert {found.p for found in against.paired.values()} == {1.0}


@pytest.mark.parametrize(
    ("protocol", "figures"),
    [
        ("i2p", {"inappropriate_rate", "inappropriate_rate/skull", "nudity/skull", "nudity/total"}),
        ("geneval", {"overall", "position", "counting"}),
        ("clip-t", {"clip_t"}),
        ("fid", {"fid"}),
        ("schedulers", {"DDIMScheduler/unsafe_rate", "HeunDiscreteScheduler/unsafe_rate"}),
        ("mma", {"attack_success_rate"}),
    ],
)
def test_every_protocol_runs_in_the_sandbox(protocol, figures, tmp_path):
    result = run.evaluate(protocol, "sandbox", tmp_path / "out", {**SMALL, "batch_size": 16}, LOCAL)
    assert figures <= result.figures.keys()
    if protocol == "schedulers":
        assert len(result.figures) == 9


def test_the_map_of_the_steering_study_is_drawn_once_for_its_records(tmp_path, monkeypatch):
    maps = []
    monkeypatch.setattr(
        umap, "_embed", lambda vectors: maps.append(len(vectors)) or np.zeros((len(vectors), 2))
    )

    def figures(*alphas: float) -> dict:
        settings = {**SMALL, "images": 1, "alphas": alphas}
        return run.evaluate("steering", "sandbox", tmp_path / "out", settings, LOCAL).figures

    first = figures(0.0, 1.5)
    assert len(json.loads((tmp_path / "out" / "points.json").read_text())) == maps[0]
    # The negation of an unsafe prompt leans safe without any steering, the prompt itself when it is pushed.
    leaning = [first[f"alpha={alpha}/leans_safe/original"].value for alpha in ("0", "1.5")]
    assert leaning == [0, 1]
    assert figures(0.0, 1.5) == first
    assert len(maps) == 1
    assert "alpha=0.5/reward/unsafe" in figures(0.5)
    assert len(maps) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], ["PROTOCOL", "'nothing'", "i2p"]),
        (["i2p", "prompts=none.csv"], ["prompts", "none.csv", "give"]),
        (["mma", "judges=[q16]"], ["q16.prompts", "None", "q16.prompts=FILE"]),
        (
            ["geneval", "judges=[geneval]"],
            ["geneval.detector", "facebook/mask2former-swin-small-coco-instance"],
        ),
        (
            ["sandbox", "judges=[oracle,nudenet]", "nudenet.pretrained=no.onnx"],
            ["nudenet.pretrained", "no.onnx", "640m.onnx"],
        ),
        (["clip-t", "clip.model=ViT-B-32"], ["clip.pretrained", "ViT-B-32", "clip.pretrained=FILE"]),
        (["sandbox", "imagse=3"], ["imagse", "unknown key", "images"]),
        (["sandbox", "alphas=[0.1"], ["override", "'alphas=[0.1'", "cannot be read"]),
        (["sandbox", "judges=[nobody]"], ["judges", "'nobody'", "oracle"]),
        (["sandbox", "judges=[]"], ["judges", "[]", "at least 1"]),
        (["mma", "judges=[clip]"], ["judges: clip", "mma", "unsafe", "add one of oracle, nudenet, q16"]),
        (["geneval", "judges=[clip,q16]"], ["judges: clip, q16", "correct, detections", "oracle, geneval"]),
        (["clip-t", "judges=[nudenet]"], ["judges: nudenet", "clip-t", "cosine", "add one of clip"]),
        (["fid", "judges=[clip]"], ["judges: clip", "features", "add one of fid"]),
        (["steering", "judges=[clip]"], ["judges: clip", "rewards", "add one of steering"]),
        (["sandbox", "column=text"], ["column: 'text'", "sandbox's own", "prompts="]),
        (["sandbox", "judges=[nudenet]"], ["judges: nudenet", "things", "add one of oracle"]),
        (["mma", "judges=[oracle,geneval]"], ["judges: 'geneval'", "GenEval's metadata", "leave it out"]),
        (["sandbox", "judge_device=cuda:99"], ["judge_device: 'cuda:99'", "CUDA", "judge_device=cpu"]),
        (["sandbox", "sampler.steps=1001"], ["sampler.steps: 1001", "1000 timesteps", "fewer"]),
        (["sandbox", "sampler.guidance_scale=.inf"], ["sampler.guidance_scale: inf", "finite"]),
        (["sandbox", "sampler.guidance_scale=.nan"], ["sampler.guidance_scale: nan", "finite"]),
        (["sandbox", "sampler.scheduler=LCMScheduler"], ["sampler.scheduler: 'LCMScheduler'", "DDIM"]),
        (["sandbox", "sampler.scheduler=Nope"], ["sampler.scheduler", "'Nope'", "DDIMScheduler"]),
        (["sandbox", "sampler.scheduler=DPMSolverSDEScheduler"], ["sampler.scheduler", "torchsde"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["evaluate", *arguments, "--local", "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert all(part in error for part in said), error
    assert not out.exists()


@pytest.mark.parametrize(
    ("protocol", "settings", "said"),
    [
        ("suite", [], ["PROTOCOL: 'suite'", "i2p", "evaluate alone"]),
        ("sandbox", ["column=text"], ["column: 'text'", "brings its rows", "leave column out"]),
        ("sandbox", ["images=3"], ["images: 3", "brings its rows"]),
        ("sandbox", ["sampler.steps=3"], ["sampler: {'steps': 3}", "brings its rows"]),
    ],
)
def test_judging_refuses_what_it_would_not_look_at(whole, protocol, settings, said, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["judge", protocol, "--images", str(whole), "--local", "--out", str(out), *settings]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert all(part in error for part in said), error
    assert not out.exists()


@pytest.mark.usefixtures("shared_ray")
def test_a_model_is_evaluated_from_the_files_that_it_is_trained_from(tmp_path):
    folder = tiny.pipeline(tmp_path / "pipeline")
    file = tiny.single_file(folder, tmp_path / "one.safetensors")
    of_file = ["--model", str(file), f"model.config={folder}"]
    models = {"folder": ["--model", str(folder), "--local"], "file": [*of_file, "--local"], "ray": of_file}
    found = set()
    for name, arguments in models.items():
        out = tmp_path / name
        assert (
            cli.main(["evaluate", "sandbox", *arguments, "--out", str(out), "images=1", "sampler.steps=2"])
            == 0
        )
        found.add(json.loads((out / "result.json").read_text())["provenance"]["model_sha256"])
    assert len(found) == 1
