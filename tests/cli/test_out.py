"""What a person keeps where a command would write stays, whatever its name, and the command says so in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdr1 import cli

SMOKE = str(Path(__file__).parents[2] / "configs" / "sandbox-smoke.yaml")
NAMES = (
    "summary.json", "seeds.json", "before_after.png", "curves.png", "grid.png", "after/000-0.png", "table.json",
    "index.html", "result.json", "evaluations.json", "metrics.jsonl", "model/unet", "pipeline/model_index.json",
    "oracle.safetensors", "README.md",
)  # fmt: skip
COMMANDS = {
    "train": ["train", SMOKE, "--local", "run.directory=OUT"],
    "evaluate": ["evaluate", "sandbox", "--local", "--out", "OUT", "images=1"],
    "suite": ["evaluate", "suite", "--local", "--out", "OUT", "images=1"],
    "judge": ["judge", "sandbox", "--images", "OUT", "--local", "--out", "OUT"],
    "sample": ["sample", "sandbox", "--prompt", "a ring", "--seed", "0", "--steps", "1", "--out", "OUT"],
    "export": ["export", "OUT", "--out", "OUT"],
    "erase": ["erase", "uce", "--out", "OUT"],
    "demo": ["sandbox", "demo", "iterations=1", "--out", "OUT"],
    "demo's run": ["sandbox", "demo", "iterations=1", "--out", "new", "run.directory=OUT"],
    "the demo's own folder for its run": ["sandbox", "demo", "--out", "new", "run.directory=new"],
    "seeds": ["sandbox", "demo", "iterations=1", "--seed", "0", "--seed", "1", "--out", "OUT"],
    "ablation": ["sandbox", "ablation", "--only", "steered", "--out", "OUT"],
    "compare": ["compare", "--out", "OUT"],
    "page of the sandbox": ["sandbox", "report", "--demo", "new", "--evaluations", "more", "--out", "OUT"],
    "build": ["sandbox", "build", "--stage", "quality", "--out", "OUT"],
    "draw": ["sandbox", "draw", "--out", "OUT/mine.png"],
    "draw over a folder": ["sandbox", "draw", "--out", "OUT"],
    "compose": ["prompts", "compose", "OUT/mine.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_person_keeps_there_stays(command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*NAMES, "mine.png", "mine.jsonl"):
        (Path("OUT") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("OUT") / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.read_text() == "mine" for path in before if path.is_file())


def test_a_sheet_that_is_there_may_be_drawn_again(tmp_path, capsys) -> None:
    for _ in range(2):
        assert cli.main(["sandbox", "draw", "--out", str(tmp_path / "world.png")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["world.png"]
