"""Configs out of files: what overlays what, where a value comes from, and one clear line for a file that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.config.files import PRESETS, load, load_with_sources
from sdr1.config.text import annotated_yaml
from sdr1.config.training import Config


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 3\nlearner: {learning_rate: 1.0e-3, clip_range: 0.2}\n")
    config = load(path, ["learner.learning_rate=2e-5", "policy.noise_window=[0,4]", "policy.steps=8"])
    assert (config.seed, config.learner.clip_range) == (3, 0.2)
    assert config.learner.learning_rate == 2e-5
    assert config.policy.window == range(0, 4)
    assert load(path, ["policy.noise_window=null"]).policy.noise_window is None


def test_a_name_without_a_file_is_a_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("sandbox.yaml") == load(PRESETS / "sandbox.yaml")
    write(tmp_path, "seed: 7\n", "sandbox.yaml")
    assert load("sandbox.yaml").seed == 7, "a file that is there wins"
    with pytest.raises(UserError, match="CONFIG: no file elsewhere/sandbox.yaml"):
        load("elsewhere/sandbox.yaml")


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "pipe.yaml"):
        with pytest.raises(UserError, match="CONFIG: no file"):
            load(path)


def test_a_file_that_is_no_text_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        load(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="larger than"):
        load(write(tmp_path, "#" * 2**21))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Config()


def test_a_file_overlays_those_that_it_extends_and_overrides_win(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\niterations: 5\nlearner: {kl_weight: 1.0, betas: [0.5, 0.9]}\n", "ground.yaml")
    write(tmp_path / "sub", "extends: ../ground.yaml\nseed: 2\nlearner: {betas: [0.1, 0.2]}\n", "middle.yaml")
    path = write(tmp_path, "extends: sub/middle.yaml\nlearner: {clip_range: 0.2}\n")
    config, sources = load_with_sources(path, ["learner.clip_range=0.3", "rollout.workers.max=2"])
    assert (config.seed, config.iterations) == (2, 5)
    assert (config.learner.kl_weight, config.learner.clip_range, config.learner.betas) == (1, 0.3, (0.1, 0.2))
    assert sources == {
        "seed": "middle.yaml",
        "iterations": "ground.yaml",
        "learner.kl_weight": "ground.yaml",
        "learner.betas": "middle.yaml",
        "learner.clip_range": "override",
        "rollout.workers.max": "override",
    }


def test_a_base_is_looked_up_beside_the_file_then_among_the_presets(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: sandbox.yaml\niterations: 3\n")
    preset = load(PRESETS / "sandbox.yaml")
    assert load(path) == preset.model_copy(update={"iterations": 3})
    write(tmp_path, "seed: 9\n", "sandbox.yaml")
    assert load(path) == Config(seed=9, iterations=3)


@pytest.mark.parametrize(
    ("base", "overlay", "sources"),
    [
        (
            "{workers: {min: 1, max: 2}}",
            "{workers: 3}",
            {"rollout.workers": "config.yaml"},
        ),
        (
            "{workers: 3}",
            "{workers: {max: 2}}",
            {"rollout.workers.max": "config.yaml"},
        ),
    ],
)
def test_a_value_takes_the_place_of_a_section_and_back(
    base: str, overlay: str, sources: dict[str, str], tmp_path: Path
) -> None:
    write(tmp_path, f"rollout: {base}", "base.yaml")
    assert load_with_sources(write(tmp_path, f"extends: base.yaml\nrollout: {overlay}"))[1] == sources


def test_show_says_where_each_value_comes_from_and_can_be_saved_and_run(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\nreward: {terms: {a: {kind: plain}}}\n", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\niterations: 5\nreward: {terms: {a: {weight: 2}}}\n")
    config, sources = load_with_sources(path, ["rollout.group_size=4"])
    text = annotated_yaml(config, sources)
    said = {
        line.split(":")[0].strip(): line.rpartition("  # ")[2] for line in text.splitlines() if ":" in line
    }
    assert said["seed"] == "base.yaml"
    assert said["iterations"] == "config.yaml"
    assert said["group_size"] == "override"
    assert said["terms"] == "base.yaml, config.yaml"
    assert said["clip_range"] == "default"
    assert load(write(tmp_path, text, "saved.yaml")) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("extends: none.yaml", ["extends: 'none.yaml': no such file", "sandbox.yaml"]),
        ("extends: 3", ["extends: 3: no such file"]),
        ("extends: [a.yaml]", ["extends: ['a.yaml']: no such file"]),
        ("extends: ${none}", ["extends: '${none}': no such file"]),
        (f"extends: {'a' * 5000}", ["extends: 'aaa", "no such file"]),
        ('extends: "a\\0b"', ["extends: 'a\\x00b': no such file"]),
        ("extends: .", ["extends: '.': no such file"]),
        ("extends: config.yaml", ["config.yaml -> config.yaml goes in a circle"]),
        ("extends: other.yaml", ["config.yaml -> other.yaml -> config.yaml goes in a circle"]),
        ("extends: broken.yaml", ["extends: ", "broken.yaml cannot be read", "write it as YAML"]),
        ("extends: list.yaml", ["CONFIG: ", "config.yaml cannot be read"]),
        ("learner: {extends: other.yaml}", ["learner.extends: unknown key"]),
    ],
)
def test_a_base_that_is_wrong_is_one_line(text: str, parts: list[str], tmp_path: Path) -> None:
    write(tmp_path, "extends: config.yaml", "other.yaml")
    write(tmp_path, "a: [", "broken.yaml")
    write(tmp_path, "- 1", "list.yaml")
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_keys_that_are_no_text_have_a_source_too(tmp_path: Path) -> None:
    path = write(tmp_path, "reward: {terms: {a: {import: 'm:f', options: {b: {1: 2}}}}}")
    assert load_with_sources(path)[1]["reward.terms.a.options.b.1"] == "config.yaml"
