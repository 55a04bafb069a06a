"""The ablation: which cells are one training, what is judged anew, and files that the report reads."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sdr1.base.errors import UserError
from sdr1.base.records import Prompt
from sdr1.config.files import load
from sdr1.config.rewards import RewardConfig
from sdr1.config.training import validate
from sdr1.report import data
from sdr1.rewards.scorer import Scorer
from sdr1.rewards.steered import SteeredReward
from sdr1.sandbox.world import SIZE, picture
from sdr1.studies import ablation
from tests.studies.test_demo import AFTER, BEFORE


@pytest.fixture
def stub(monkeypatch):
    """No training and no pictures: the configs trained, and the base that each cell was judged with."""
    stub = SimpleNamespace(configs=[], bases=[])

    def train(config, *, local):
        stub.configs.append(config)
        return SimpleNamespace(model=config.run.directory / "model")

    def judge(out, seed, images, model, *, before):
        stub.bases.append(before)
        out.mkdir(parents=True)
        found = {"before": BEFORE, "after": AFTER | {"unsafe_trained": seed / 10}}
        (out / "summary.json").write_text(json.dumps(found))

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "judge", judge)
    return stub


def run(out, **options):
    ablation.run(out, **{"seeds": [1, 2, 3], "images": 50, "overrides": [], "only": [], **options})


def test_equal_trainings_are_made_once_and_the_base_is_judged_once_a_seed(stub, tmp_path):
    run(tmp_path)
    rewards = [config.reward for config in stub.configs]
    assert len(rewards) == 3 * (4 + 1 + 3 + 6)
    assert len({(r.kind, r.alpha, r.steer, bool(r.terms)) for r in rewards}) == 11
    assert [base is None for base in stub.bases] == [True] * 3 + [False] * 39
    assert stub.bases[-1] == BEFORE
    names = ("table.json", "alpha_sweep.json", "noise.json")
    table, sweep, noise = (json.loads((tmp_path / name).read_text()) for name in names)
    assert [row["name"] for row in table] == ["plain", "penalty", "negative", "steered"]
    assert [row["alpha"] for row in sweep] == [0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0]
    assert [row["name"] for row in noise] == [
        "noise-group-window",
        "noise-sample-window",
        "noise-group-all",
        "noise-sample-all",
    ]
    assert not (tmp_path / "cells" / "noise-group-window").exists(), "it is the preset, made as `steered`"
    for row in (*table, *sweep, *noise):
        assert row["unsafe_trained"] == [0.1, 0.2, 0.3]
        assert row["unsafe_untrained"] == [pytest.approx(0.175)] * 3
        assert row["utility"] == [0.815] * 3
        assert row["shape_kept"] == [AFTER["shape_kept"]] * 3
        assert row["mean"]["unsafe_trained"] == pytest.approx(0.2)
    assert (tmp_path / "alpha_sweep.png").is_file()
    material = data.read([str(tmp_path)])
    assert [each.name for each in material.ablation] == ["plain", "penalty", "negative", "steered"]
    assert len(material.alpha_sweep) == 8
    run(tmp_path)
    assert len(stub.configs) == 42


def test_the_reference_has_the_quirks_of_the_preset_of_that_name(stub, tmp_path):
    run(tmp_path, seeds=[1], only=["steered", "reference"])
    compared = json.loads((tmp_path / "reference.json").read_text())
    assert [row["name"] for row in compared] == ["steered", "reference"]
    ours, quirky = stub.configs
    released = load("configs/sd14-reference.yaml")
    assert quirky.policy.initial_noise == released.policy.initial_noise
    assert quirky.reward.steer == released.reward.steer
    assert quirky.learner.kl_weight == released.learner.kl_weight
    assert quirky.learner.advantage_scale == released.learner.advantage_scale
    for config in (quirky, released):
        assert config.policy.window == range(config.policy.steps - 1)
        assert config.prompts.per_iteration > config.groups_per_update
    assert (quirky.iterations, quirky.prompts, quirky.rollout) == (
        ours.iterations,
        ours.prompts,
        ours.rollout,
    )


def test_what_is_equal_follows_from_the_overrides(stub, tmp_path):
    run(tmp_path, seeds=[1], only=["alpha-0.3", "alpha-1.5"], overrides=["reward.alpha=0.3"])
    assert [config.reward.alpha for config in stub.configs] == [0.3, 1.5]
    assert (tmp_path / "cells" / "steered").is_dir()
    assert (tmp_path / "cells" / "alpha-1.5").is_dir()
    # With a projection alpha 0 still takes the prompt's own share of the direction away.
    run(tmp_path / "p", seeds=[1], only=["alpha-0.0"], overrides=["reward.steering=projection"])
    assert stub.configs[-1].reward.kind == "steered"


def test_cells_of_other_settings_do_not_stand_in_one_table(stub, tmp_path):
    run(tmp_path, seeds=[1], only=["plain"], overrides=["iterations=20"])
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"iterations: 76: .* holds cells made with 20; choose another --out"):
        run(tmp_path, seeds=[1], only=["negative"])
    with pytest.raises(UserError, match=r"--images: 20: .* holds cells of 50"):
        run(tmp_path, seeds=[1], only=["plain"], images=20, overrides=["iterations=20"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == made
    run(tmp_path, seeds=[1], only=["negative"], overrides=["iterations=20", "rollout.workers=2"])
    assert [base is None for base in stub.bases] == [True, False]


def test_a_folder_of_somebody_elses_is_not_an_ablations(stub, tmp_path):
    (tmp_path / "table.json").write_text("mine")
    with pytest.raises(UserError, match=r"--out: .*holds no ablation of sdr1"):
        run(tmp_path, seeds=[1], only=["plain"])
    assert not stub.configs
    assert (tmp_path / "table.json").read_text() == "mine"


def test_an_unknown_cell_is_refused(stub, tmp_path):
    with pytest.raises(UserError, match="--only: 'alpha-9': no such cell"):
        run(tmp_path, only=["alpha-9"])


def test_steering_by_nothing_is_the_plain_reward():
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    for prompt in (Prompt("a skull", "unsafe"), Prompt("a red circle", "safe")):
        nothing, plain = (
            SteeredReward(RewardConfig(anchors="sandbox", **options))(images, prompt)
            for options in ({"alpha": 0.0}, {"kind": "plain"})
        )
        assert np.allclose(nothing, plain, rtol=0, atol=1e-6)


def test_the_penalty_is_the_oracles():
    images = np.stack([picture(3, task)[1] for task in ("single_object", "unsafe")])
    judge = {"import": "sdr1.sandbox.oracle:penalty"}
    reward = validate({"reward": {"kind": "plain", "terms": {"judge": judge}}}).reward
    with_penalty = Scorer(reward).score(images, Prompt("a red circle", "safe"))
    without = Scorer(RewardConfig(kind="plain")).score(images, Prompt("a red circle", "safe"))
    assert with_penalty.rewards - without.rewards == pytest.approx([0, -1], abs=1e-6)


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, "{}", '{"before": {}, "after": 3}'], ids=["torn", "deep", "empty", "odd"]
)
def test_a_damaged_cell_is_named(stub, tmp_path, content):
    run(tmp_path, only=["plain"], seeds=[1])
    cell = tmp_path / "cells" / "plain" / "seed-1" / "summary.json"
    cell.write_text(content)
    with pytest.raises(UserError, match=rf"^{cell}: .*: make it again, or leave it out"):
        run(tmp_path, only=["plain"], seeds=[1])
