"""The config: defaults, presets, overrides, round trip, and one clear line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sdr1.base.checked import describe
from sdr1.base.errors import UserError
from sdr1.config.files import load
from sdr1.config.text import annotated_yaml
from sdr1.config.training import Config, validate

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_presets_are_valid_and_survive_show(preset: Path, tmp_path: Path) -> None:
    config = load(preset)
    assert load(write(tmp_path, annotated_yaml(config))) == config


def test_show_names_every_field_with_its_meaning() -> None:
    text = annotated_yaml(Config())
    for key, description in describe(Config):
        assert f"{key.rpartition('.')[2]}:" in text, key
        assert description, f"{key} has no description"
        assert f"# {description}" in text, key


def test_show_survives_the_rarer_kinds_of_values(tmp_path: Path) -> None:
    values = {
        "run": {"directory": "out: puts/é #1"},
        "prompts": {"path": "~", "unsafe_share": None},
        "learner": {"learning_rate": 1e-5, "betas": [0.5, 0.9]},
        "policy": {"noise_window": [0, 3]},
        "reward": {"anchors": {"safe": [], "unsafe": ["a: 'b'", "no", "1"]}, "pretrained": "w.safetensors"},
    }
    config = validate(values)
    assert load(write(tmp_path, annotated_yaml(config))) == config


def test_window_defaults_to_all_steps_but_the_last() -> None:
    assert validate({"policy": {"steps": 10}}).policy.window == range(0, 9)


@given(st.integers(1, 12), st.integers(1, 12))
def test_minibatch_must_divide_the_groups(groups: int, per_update: int) -> None:
    values = {"prompts": {"per_iteration": groups}, "learner": {"groups_per_update": per_update}}
    if groups % per_update == 0:
        assert validate(values).groups_per_update == per_update
    else:
        with pytest.raises(
            UserError, match=r"^learner\.groups_per_update: \d+ does not divide .* use one of \[1"
        ):
            validate(values)


@pytest.mark.parametrize(
    ("label", "weight", "on", "expected"),
    [
        ("safe", 1, "safe", True),
        ("unsafe", 1, "safe", False),
        (None, 1, "safe", False),
        (None, 1, "all", True),
    ]
    + [("safe", 0, "all", False)],
)
def test_has_kl(label: str | None, weight: float, on: str, expected: bool) -> None:
    assert validate({"learner": {"kl_weight": weight, "kl_on": on}}).has_kl(label) is expected


BAD = [
    # what is wrong, in the file, in overrides; field, value and a piece of the fix that the line must hold
    ("unknown key", "learner: {leraning_rate: 1}", [], ["learner.leraning_rate", "learner.learning_rate"]),
    ("unknown key as override", "", ["rollout.gruop_size=4"], ["rollout.gruop_size", "rollout.group_size"]),
    ("section misspelt and empty", "", ["polcy.lora={}"], ["polcy: unknown key"]),
    ("wrong type", "iterations: many", [], ["iterations", "'many'", "integer"]),
    (
        "section that is no section",
        "learner: 3",
        [],
        ["learner: 3: is no mapping", "fields", "learning_rate"],
    ),
    ("group size 1", "rollout: {group_size: 1}", [], ["rollout.group_size", "1", "2"]),
    ("alpha NaN", "reward: {alpha: .nan}", [], ["reward.alpha", "nan", "finite"]),
    ("alpha NaN as override", "", ["reward.alpha=nan"], ["reward.alpha", "nan", "finite"]),
    ("alpha infinite", "reward: {alpha: .inf}", [], ["reward.alpha", "inf", "finite"]),
    ("negative alpha", "reward: {alpha: -1}", [], ["reward.alpha", "-1", "0"]),
    ("odd device", "learner: {device: gpu}", [], ["learner.device", "'gpu'", "cpu"]),
    ("unknown choice", "reward: {steering: rotate}", [], ["reward.steering", "'rotate'", "translation"]),
    ("no unsafe anchors", "reward: {anchors: {unsafe: []}}", [], ["reward.anchors", "[]", "at least 1"]),
    ("anchors misspelt", "reward: {anchors: sandbx}", [], ["reward.anchors", "'sandbx'"]),
    (
        "the same anchors",
        "reward: {anchors: {safe: [a, b], unsafe: [b, a]}}",
        [],
        ["reward.anchors", "no direction"],
    ),
    (
        "an option of another objective",
        "learner: {forward: {timesteps: 6}}",
        [],
        ["learner.forward.timesteps: 6 belongs to learner.objective=forward", "leave it out"],
    ),
    (
        "a solver for GRPO",
        "policy: {solver: DDIMScheduler}",
        [],
        ["policy.solver: 'DDIMScheduler' belongs to learner.objective=forward"],
    ),
    (
        "GRPO's clip for another objective",
        "learner: {objective: forward, clip_range: 0.2}",
        [],
        ["learner.clip_range: 0.2 belongs to learner.objective=grpo", "see learner.forward"],
    ),
    (
        "noise of the chain beside a solver",
        "policy: {solver: DDIMScheduler, initial_noise: group}\nlearner: {objective: forward}",
        [],
        ["policy.initial_noise: 'group' belongs to the chain that policy.solver=DDIMScheduler replaces"],
    ),
    (
        "an option of another form",
        "learner: {objective: forward, forward: {form: bounded, clip_range: 0.1}}",
        [],
        ["learner.forward.clip_range: 0.1 belongs to learner.forward.form=clipped"],
    ),
    (
        "timesteps that do not rise",
        "learner: {objective: forward, forward: {between: [0.9, 0.1]}}",
        [],
        ["learner.forward", "between [0.9, 0.1] must rise", "e.g. [0.02, 0.98]"],
    ),
    (
        "an average that is not there",
        "rollout: {weights: ema}",
        [],
        ["rollout.weights: 'ema'", "set learner.ema_decay"],
    ),
    (
        "stale and lagging",
        "rollout: {weights: ema, max_staleness: 1}\nlearner: {ema_decay: 0.5}",
        [],
        ["rollout.max_staleness: 1", "set it to 0"],
    ),
    (
        "a pull to nothing",
        "learner: {objective: forward, forward: {old_weight: 1}}",
        [],
        ["learner.forward.old_weight: 1:", "set rollout.weights=ema"],
    ),
    ("window outside", "policy: {steps: 4, noise_window: [0, 5]}", [], ["policy", "noise_window", "5", "4"]),
    (
        "window empty",
        "policy: {noise_window: [3, 3]}",
        [],
        ["policy", "noise_window", "[3, 3)", "at least one"],
    ),
    ("override without =", "", ["seed"], ["override", "'seed'", "section.key=value"]),
    ("override that is no YAML", "", ["seed=1", "learner.betas=[0.9"], ["override: 'learner.betas=[0.9'"]),
    (
        "bounds crossed",
        "rollout: {workers: {min: 3, max: 2}}",
        [],
        ["rollout.workers", "min 3", "min <= max"],
    ),
    ("no upper bound", "rollout: {workers: {min: 1}}", [], ["rollout.workers.max", "required"]),
    ("misspelt bound", "", ["reward.workers.mx=2"], ["reward.workers.", "reward.workers"]),
    ("no workers", "rollout: {workers: 0}", [], ["rollout.workers", "0", "1"]),
    ("odd workers", "rollout: {workers: many}", [], ["rollout.workers", "'many'", "integer"]),
    ("section misspelt", "", ["polcy.steps=1"], ["polcy.steps: unknown key; close to it: policy.steps"]),
    (
        "a word's capitals",
        "policy: {trainable: Full}",
        [],
        ["policy.trainable: 'Full': input should be 'full'"],
    ),
    ("yes for a number", "rollout: {workers: yes}", [], ["rollout.workers: True", "give a number"]),
    ("true in a pair", "learner: {betas: [true, 0.9]}", [], ["learner.betas", "True", "give a number"]),
    ("true for a term's weight", "reward: {terms: {a: {kind: plain, weight: true}}}", [], ["weight: True"]),
    ("alpha of LoRA infinite", "policy: {lora: {alpha: .inf}}", [], ["policy.lora.alpha", "inf", "finite"]),
    (
        "a rate beyond sense",
        "",
        ["learner.learning_rate=1e30"],
        ["learner.learning_rate", "1e+30", "less than"],
    ),
    ("beta of 1", "learner: {betas: [0.9, 1]}", [], ["learner.betas.1", "1", "less than 1"]),
    ("rank beyond sense", "", ["policy.lora.rank=1000000000"], ["policy.lora.rank", "1000000000", "4096"]),
    ("size beyond sense", "", ["policy.size=1000000000"], ["policy.size", "8192"]),
    ("groups without end", "", ["prompts.per_iteration=1000000000000"], ["prompts.per_iteration", "100000"]),
    ("images without end", "", ["rollout.group_size=1000000000"], ["rollout.group_size", "10000"]),
    ("a long seed", "", ["seed=" + "9" * 3000], ["seed: 999", "(3,000 letters)", "less than or equal"]),
    ("a longer seed", "", ["seed=" + "9" * 5000], ["override: 'seed=999", "(5,007 letters)", "4300"]),
    ("a long key", "", ["a" * 5000 + "=1"], ["override: 'aaa", "5,000 letters"]),
    ("a deep key", "", [".".join("a" * 2000) + "=1"], ["override: 'a.a.", "3,999 letters"]),
    ("a long name", "", ["policy.model=" + "a" * 300], ["policy.model: 'aaa", "300 bytes", "255"]),
    ("a NUL", 'prompts: {path: "a\\0b"}', [], ["prompts.path", "NUL", "take it out"]),
    ("brackets in an override", "", ["seed=" + "[" * 1000 + "]" * 1000], ["seed=[[[", "deeper than 50"]),
    ("brackets in a key", "", ["[=1"], ["override: '[=1'", "section.key=value"]),
    ("brackets in the file", "seed: " + "[" * 10**5, [], ["CONFIG", "deeper than 50"]),
    ("aliases that grow", "a: &a [1]\nb: [*a, *a]", [], ["CONFIG", "alias", "write the value out"]),
    ("a tag that would run", "seed: !!python/object/apply:os.getcwd []", [], ["CONFIG", "tag"]),
    ("a binary tag", "seed: !!binary aGVsbG8=", [], ["seed", "b'hello'", "integer"]),
    ("a set", "seed: !!set {1}", [], ["CONFIG"]),
    ("an escape sequence", "", ["seed=\x1b[31m"], ["override", "special characters"]),
    ("an interpolation of itself", "", ["seed=${seed}"], ["CONFIG", "Recursive"]),
    (
        "a list in place of a section",
        "",
        ["policy=[1]"],
        ["policy: [1]: is no mapping", "fields", "model", "steps"],
    ),
    (
        "a section that says nothing",
        "tracking:",
        [],
        ["tracking: None: is no mapping", "fields", "experiment"],
    ),
    (
        "a number in place of a section",
        "",
        ["policy.lora=8"],
        ["policy.lora: 8: is no mapping", "fields", "rank, alpha"],
    ),
    (
        "a word in place of a rule",
        "",
        ["stop.when=[x]"],
        ["stop.when.0: 'x': is no mapping", "fields", "metric, above, below, iterations"],
    ),
    ("a number in place of a list", "", ["stop.when=3"], ["stop.when: 3: is no list", "[...]"]),
    (
        "a list in place of terms",
        "",
        ["reward.terms=[1]"],
        ["reward.terms: [1]: is no mapping", "{name: ...}"],
    ),
    (
        "a number in place of a term",
        "",
        ["reward.terms={a: 1}"],
        ["reward.terms.a: 1: is no mapping", "{kind: ...}"],
    ),
    (
        "a term of no kind",
        "",
        ["reward.terms={a: {weight: 1}}"],
        ["reward.terms.a: {'weight': 1}: says no kind", "{kind: ...}"],
    ),
    (
        "a term of an unknown kind",
        "",
        ["reward.terms={a: {kind: 3}}"],
        ["reward.terms.a.kind: '3': no such kind; use one of steered,"],
    ),
    (
        "a list in place of anchors",
        "",
        ["reward.anchors=[1]"],
        ["reward.anchors: [1]: is no mapping; give its fields: safe, unsafe"],
    ),
    ("an earlier value", "reward: {steer: negative}", [], ["reward.steer: 'negative'", "'score' now"]),
    ("a key of a number", "1: 2", [], ["1: 1: keys should be strings"]),
    ("file is a word", "word", [], ["word", "unknown key"]),
    ("file is a number", "5", [], ["CONFIG"]),
    ("file is a list", "- 1", [], ["CONFIG"]),
    ("file is no YAML", "a: [", [], ["CONFIG", "cannot be read"]),
]


@pytest.mark.parametrize(("text", "overrides", "parts"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_mistake_is_one_line_with_field_value_and_fix(
    text: str, overrides: list[str], parts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(write(tmp_path, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_second_mistake_is_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="and 1 more"):
        load(write(tmp_path, "iterations: 0\nseed: -1\n"))


def test_a_config_is_read_without_torch(tmp_path: Path) -> None:
    """Whoever only reads a config waits for no models."""
    code = "import sys, sdr1.config.files, sdr1.config.evaluation, sdr1.config.text; sdr1.config.files.load(sys.argv[1]); "
    code += "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'ray', 'nudenet'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code, write(tmp_path, "")], check=True)


def test_every_field_can_be_set_in_yaml() -> None:
    assert validate(yaml.safe_load(annotated_yaml(Config()))) == Config()
