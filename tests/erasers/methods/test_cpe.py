"""CPE: its loss and residuals token by token, attacks that lead back to the concept, weights by singular values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdr1.erasers import layers, patched
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.cpe import Batch, Cpe, Cpe4, Sets, strengths
from sdr1.models import texts
from tests.erasers import checks

SMALL = {
    "width": 4,
    "rank": 2,
    "stages": 2,
    "updates": 1,
    "first_updates": 2,
    "attack_updates": 1,
    "batch": 2,
    "attacks": 2,
    "mixtures": 2,
    "first_rate": 1e-2,
}


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    two = replace(task, words=("square", "ring"))
    erased = checks.holds(Cpe4(**SMALL), pipeline, two, tmp_path / "out")
    assert len(erased.patch.tensors["query"]) == 2


def test_fresh_residuals_are_the_base(pipeline, task) -> None:
    small = {**SMALL, "stages": 1, "first_rate": 1e-30}
    checks.changes_nothing(Cpe(**small), pipeline, task)


def _filled(weights, count, by) -> Sets:
    sets = Sets(weights, count, by)
    for up in sets.up:
        torch.nn.init.normal_(up)
    return sets


def _by_hand(sets, by, place, states_LD):
    """A layer's residual for each token, one after the other."""
    arrays = {name: held.detach().double().numpy() for name, held in sets.named_parameters()}
    states = states_LD.detach().double().numpy()
    found = []
    for token in states:
        best = None
        for n in range(len(arrays["query"])):
            looks = [
                (token @ arrays["query"][n]) @ (other @ arrays["query"][n]) / by.width**0.5
                for other in states
            ]
            shares = np.exp(np.array(looks) - max(looks))
            mixed = (shares / shares.sum()) @ states
            gate = 1 / (1 + np.exp(-mixed @ arrays["score"][n]))
            if best is None or gate > best[0]:
                product = arrays[f"up.{place}"][n] @ (arrays[f"down.{place}"][n] @ (gate * mixed))
                best = (gate, by.alpha / by.rank * product)
        found.append(best[1])
    return torch.tensor(np.array(found))


@torch.no_grad()
def test_residuals_token_by_token() -> None:
    by = Cpe(**SMALL, alpha=3.0)
    weights = {"a": torch.zeros(5, 6), "b": torch.zeros(3, 6)}
    sets, drawn = _filled(weights, 3, by), torch.randn(7, 6)
    # Where all states are negated the set that had the least score has the most.
    states = torch.stack([drawn, -drawn])
    read = sets.read(states)
    assert len(set(read.gates.argmax(0).flatten().tolist())) > 1
    for place, name in enumerate(weights):
        found = sets.added(name, read)
        for sample in range(2):
            expected = _by_hand(sets, by, place, states[sample])
            torch.testing.assert_close(found[sample].double(), expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_loss_is_the_formula() -> None:
    by = Cpe(**SMALL, eta=2.0, keep=7.0)
    weights = {"a": torch.randn(5, 6), "b": torch.randn(3, 6)}
    sets, factors = _filled(weights, 1, by), {"a": 0.5, "b": 2.0}
    batch = Batch(torch.randn(2, 4, 6), torch.randn(2, 4, 6), torch.randn(3, 4, 6))
    total = 0.0
    for place, name in enumerate(weights):
        base = weights[name].double()

        def after(states, base=base, place=place):
            rows = [
                states[n].double() @ base.T + _by_hand(sets, by, place, states[n]) for n in range(len(states))
            ]
            return torch.stack(rows)

        concept, twin, kept = (each.double() @ base.T for each in batch)
        target = twin + 2.0 * (twin - concept)
        errors = (after(batch.erased) - target).square().mean() + 7 * (
            after(batch.kept) - kept
        ).square().mean()
        total += factors[name] * float(errors)
    assert float(by.loss(sets, weights, factors, batch)) == pytest.approx(total, rel=1e-4)


def test_attacks_lead_back_and_stay_within_their_bound() -> None:
    by = Cpe(**{**SMALL, "attack_updates": 30}, attack_rate=0.05, bound=0.02)
    weights, factors = {"a": torch.randn(5, 6)}, {"a": 1.0}
    sets, states = _filled(weights, 1, by), torch.randn(2, 4, 6)
    moved = by.attack(sets, weights, factors, states, torch.Generator().manual_seed(0))
    share = moved.norm(dim=-1) / states.norm(dim=-1)
    assert share.max() == pytest.approx(0.02, rel=1e-4)

    def distance(change):
        with torch.no_grad():
            now = sets.added("a", sets.read(states + change)) + change @ weights["a"].T
        return float(now.square().mean())

    assert distance(moved) < distance(torch.zeros_like(states))
    assert all(each.requires_grad and each.grad is None for each in sets.parameters())


@torch.no_grad()
def test_kept_states(pipeline, task) -> None:
    states = texts.states(pipeline, ["", *task.retain])
    random = torch.Generator().manual_seed(0)
    quiet = Cpe(mixtures=40, noise=0)._kept(states, random)
    assert torch.equal(quiet[0], states[0])
    for each in quiet[1:].flatten(1).double():
        # On a line between two of the prompts: what is left of the best fit is nothing.
        rest = []
        for one in range(1, 4):
            for other in range(one, 4):
                begin, end = states[one].double().flatten(), states[other].double().flatten()
                way = end - begin
                share = ((each - begin) @ way / (way @ way)).nan_to_num().clamp(0, 1)
                rest.append(float((begin + share * way - each).norm()))
        assert min(rest) < 1e-4
    loud = Cpe(mixtures=40, noise=0.1)._kept(states[:1], random)
    share = (loud[1:] - states[0]).norm(dim=-1) / states[0].norm(dim=-1)
    assert float(share.mean()) == pytest.approx(0.1, rel=0.1)


def test_sets_learn_from_prompts_that_name_their_words(task) -> None:
    prompts = ("a knife", "a red flame", "a cross", "a knife and a flame", "fire")
    many = replace(task, words=("knife", "blade", "flame", "fire"), unsafe=prompts, neutral=("",) * 5)
    assert Cpe()._groups(many) == [[0, 1, 3, 4, 2]]
    assert Cpe(sets=2)._groups(many) == [[0, 3, 2], [1, 3, 4]]
    assert Cpe4()._groups(many) == [[0, 3, 2], [1, 3], [4]]
    assert Cpe4()._groups(replace(many, words=("flame",))) == [[1, 3, 0, 2, 4]]


def test_weights_of_layers(pipeline) -> None:
    found = strengths(pipeline.unet, 77)
    assert found.keys() == layers.kv(pipeline.unet).keys()
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    out, value, query = (
        each.weight.detach().double().numpy()
        for each in (attention.to_out[0], attention.to_v, attention.to_q)
    )
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    largest = [np.linalg.svd(each)[1][0] for each in (out @ value, query, out)]
    assert found[f"{name}.to_k"] == pytest.approx(largest[0] * largest[1] / 77)
    assert found[f"{name}.to_v"] == pytest.approx(largest[2])


def test_the_patch_adds_residuals_to_keys_and_values(pipeline, task) -> None:
    erased = Cpe(**{**SMALL, "first_rate": 0.1})(pipeline, task, Meter())
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    kept = []
    patched.install(erased.patch, erased.pipeline)
    erased.pipeline.unet.get_submodule(name).register_forward_hook(
        lambda _, args, output: kept.append(output)
    )
    states = texts.states(pipeline, ["a red square"])
    with torch.no_grad():
        erased.pipeline.unet(torch.randn(1, 4, 8, 8), 10, encoder_hidden_states=states)
    weights = {each: layer.weight for each, layer in layers.kv(pipeline.unet).items()}
    sets = Sets(weights, 1, erased.patch.settings)
    for own, held in sets.tensors().items():
        held.copy_(erased.patch.tensors[own])
    place = list(weights).index(name)
    expected = states[0].double() @ weights[name].double().T + _by_hand(
        sets, erased.patch.settings, place, states[0]
    )
    torch.testing.assert_close(kept[0][0].double(), expected, rtol=1e-3, atol=1e-4)
