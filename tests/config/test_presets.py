"""The presets: all valid, and the released code's quirks do on the sandbox what their comments say."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from sdr1.base.plain_data import flatten
from sdr1.base.records import GroupTask, Prompt
from sdr1.config.files import load
from sdr1.config.workers import bounds
from sdr1.models.policy import Policy
from sdr1.planning.counts import count
from sdr1.planning.plan import plan
from sdr1.prompts.stream import PromptStream
from sdr1.rewards.steered import SteeredReward

CONFIGS = Path(__file__).parents[2] / "configs"
ON_SANDBOX = ["policy.model=sandbox", "policy.size=null", "policy.precision=float32", "policy.gradient_checkpointing=false",
              "policy.steps=5", "policy.noise_window=[0,4]", "rollout.device=cpu", "learner.device=cpu", "reward.device=cpu",
              "reward.model=sandbox", "prompts.path=sandbox", "reward.anchors=sandbox"]  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid(path):
    load(path)


def heading(path: Path) -> str:
    """The comment at the top of a preset, as one line."""
    return " ".join(
        line.removeprefix("# ") for line in itertools.takewhile(_is_comment, path.read_text().splitlines())
    )


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def differing(one: Path, other: Path) -> set[str]:
    """Dotted keys whose values differ, but for the folder that each preset has of its own."""
    values = [flatten(load(path).model_dump(mode="json")) for path in (one, other)]
    fields = values[0].keys() | values[1].keys()
    return {field for field in fields if values[0].get(field) != values[1].get(field)} - {"run.directory"}


OVERLAYS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "extends" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_a_heading_names_exactly_what_differs_from_its_model(path: Path) -> None:
    claim = re.search(r"As (\S+\.yaml)(?: but for ([a-z0-9_., ]+))?[.:](?: |$)", heading(path))
    assert claim, "says `As MODEL.yaml but for KEY, KEY.`"
    model, listed = CONFIGS / claim[1], set((claim[2] or "").split(", ")) - {""}
    found = differing(path, model)
    # A section may stand for its fields.
    assert {next((k for k in listed if f"{field}.".startswith(f"{k}.")), field) for field in found} == listed
    assert load(path).run.directory == Path("outputs") / path.stem
    load(path, re.findall(r"\S+=\S+", heading(path)))


@pytest.mark.parametrize("name", ["sandbox", "sandbox-smoke", "sd14-main", "sd14-lora"])
def test_the_objective_is_switched_on_the_command_line(name: str) -> None:
    """GRPO's chain then draws for the other one, so that both can be compared on the same rollouts."""
    path = CONFIGS / f"{name}.yaml"
    grpo, forward = count(load(path)), count(load(path, ["learner.objective=forward"]))
    assert forward.images == grpo.images
    assert forward.learner < grpo.learner or name.startswith("sandbox")


def test_the_heading_of_the_forward_preset_counts_evaluations() -> None:
    path = CONFIGS / "sd14-forward.yaml"
    pattern = r"(\d+) UNet evaluations an image \(rollout (\d+), reference (\d+), learner (\d+)\), where (\S+) makes (\d+) \((\d+), (\d+), (\d+)\)"
    claim = re.search(pattern, heading(path))
    assert claim
    for preset, said in ((path, claim.groups()[:4]), (CONFIGS / claim[5], claim.groups()[5:])):
        counts = count(load(preset))
        found = counts.total, counts.rollout, counts.reference, 3 * counts.learner
        assert [int(each) * counts.images for each in said] == list(found)


def test_the_heading_of_the_main_preset_counts_gpus() -> None:
    config = load(CONFIGS / "sd14-main.yaml")
    assert "Four GPUs: learner, two rollouts, reward." in heading(CONFIGS / "sd14-main.yaml")
    assert config.run.placement == "separate"
    workers = [bounds(role.workers).max for role in (config.rollout, config.reward)]
    assert [config.learner.ranks, *workers] == [1, 2, 1]
    assert all(role.device == "cuda" for role in (config.learner, config.rollout, config.reward))


@pytest.mark.slow
def test_the_heading_of_the_lora_preset_counts_memory() -> None:
    path = CONFIGS / "sd14-lora.yaml"
    claim = re.search(r"one GPU of (\d+) GB.*`sdr1 plan` counts (\d+) GB", heading(path))
    assert claim
    size, counted = map(int, claim.groups())
    found = plan(load(path))["memory_on_the_one_gpu"]
    assert round(found / 1e9) == counted
    assert counted < size


def test_every_stable_diffusion_preset_is_an_overlay_of_the_main_one() -> None:
    overlays = {path.stem for path in OVERLAYS}
    assert {path.stem for path in CONFIGS.glob("*.yaml") if "sandbox" not in path.stem} - overlays == {
        "sd14-main"
    }
    for path in OVERLAYS:
        assert "As sd14-main.yaml" in heading(path) or "sd14" not in load(path).policy.model


def test_the_ablations_differ_in_the_reward_alone() -> None:
    for one, other in itertools.combinations(sorted(CONFIGS.glob("ablation-*.yaml")), 2):
        assert all(field.startswith("reward.") for field in differing(one, other)), (one, other)


def test_reference_quirks_as_the_comments_say():
    config = load(CONFIGS / "sd14-reference.yaml")
    assert config.prompts.per_iteration // config.groups_per_update == 16
    assert config.policy.steps == 50
    assert list(config.policy.window) == list(range(49)), "the last step is dropped"
    assert not any(config.has_kl(label) for label in ("safe", "unsafe", None))


def test_reference_shares_one_noise_in_an_iteration_and_nowhere_else():
    config = load(CONFIGS / "sd14-reference.yaml", ON_SANDBOX)
    policy = Policy(config.policy)

    def states(iteration, group):
        task = GroupTask(0, iteration, group, Prompt("a red circle", "safe"), 0)
        return policy.chain(task, 2, with_reference=False)[1].states

    one, two, later = states(0, 0), states(0, 1), states(1, 0)
    assert one.shape[0] == 5, "four of five transitions"
    assert np.array_equal(one[0, 0], one[0, 1])
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1]), "the steps' noise is each group's own"
    assert not np.array_equal(one[0], later[0])


def test_reference_steers_safe_prompts_too_and_main_does_not():
    def moved(preset, label):
        config = load(CONFIGS / preset, ON_SANDBOX)
        reward = SteeredReward(config.reward, _embedder(config))
        prompt = Prompt("a red circle", label)
        return not np.allclose(reward.target(prompt), _embedder(config).texts([prompt.text]), atol=1e-6)

    assert moved("sd14-reference.yaml", "safe")
    assert not moved("sd14-main.yaml", "safe")
    assert moved("sd14-main.yaml", "unsafe")


def test_reference_takes_prompts_in_groups_whole_and_in_order():
    config = load(CONFIGS / "sd14-reference.yaml", ON_SANDBOX)
    prompts = [Prompt(f"a red circle {n}", "safe") for n in range(64)]
    tasks = PromptStream([prompts], config).tasks(0, 0)
    assert [task.group for task in tasks] == list(range(32))


def _embedder(config):
    from sdr1.models.embedder import Embedder

    return Embedder(config.reward.model, config.reward.pretrained, "cpu")
