"""SAeUron: codes, loss and turn by plain loops, features found in data where it is known which they are, edits of one block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers import patched
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.saeuron import Sae, Saeuron, Tokens, largest, loss, turned
from sdr1.models import texts
from tests.erasers import checks

SMALL = {
    "drawings": 4,
    "concept_share": 0.5,
    "guidance": 1.0,
    "epochs": 2,
    "batch": 16,
    "expansion": 2,
    "active": 4,
}


@pytest.fixture
def short(task):
    return replace(task, sampler=replace(task.sampler, steps=2))


def test_holds_for_every_method(pipeline, short, tmp_path) -> None:
    checks.holds(Saeuron(**SMALL), pipeline, short, tmp_path / "out")


def test_no_features_is_the_base(pipeline, short) -> None:
    checks.changes_nothing(Saeuron(**SMALL, features=0), pipeline, short)


@torch.no_grad()
def test_loss_is_the_formula() -> None:
    sae, tokens = Sae(4, 6), torch.randn(5, 4)
    sae.centre += 0.1
    dead = torch.tensor([False, True, False, True, False, True])
    found, codes = loss(sae, tokens, 2, dead)
    weight, bias, decoder, centre = (
        each.double().numpy() for each in (sae.encoder.weight, sae.encoder.bias, sae.decoder, sae.centre)
    )
    np.testing.assert_allclose((decoder**2).sum(1), 1, rtol=1e-6)
    x = tokens.double().numpy()
    z = np.maximum((x - centre) @ weight.T + bias, 0)
    edge = np.sort(z.flatten())[-10]
    kept = np.where(z >= edge, z, 0)
    np.testing.assert_allclose(codes.numpy(), kept, rtol=1e-4, atol=1e-6)
    error = x - kept @ decoder - centre
    variance = ((x - x.mean(0)) ** 2).sum()
    own = np.zeros_like(x)
    for n, row in enumerate(z):
        # Half the width: the two largest of the three dead ones.
        for place in sorted((1, 3, 5), key=lambda place: -row[place])[:2]:
            own[n] += row[place] * decoder[place]
    expected = (error**2).sum() / variance + ((own - error) ** 2).sum() / variance / 32
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(loss(sae, tokens, 2, dead & False)[0]) == pytest.approx(
        (error**2).sum() / variance, rel=1e-4
    )


def test_largest_and_turn() -> None:
    assert largest(torch.tensor([[3.0, 1, 2], [0, 5, 4]]), 2).tolist() == [[3, 0, 2], [0, 5, 4]]
    codes, means, concepts = (
        torch.tensor([[2.0, 1.0], [0.5, 4.0]]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([0.5, 2.0]),
    )
    # Above their mean: 2 becomes 2 x -3 x 0.5, and 4 becomes 4 x -3 x 2.
    assert turned(codes, means, concepts, -3.0).tolist() == [[-3.0 - 2.0, 0], [0, -24.0 - 4.0]]


def test_features_of_the_concept_are_found() -> None:
    """Tokens of one direction each: the concept's alone is half of its tokens, the others' is in both."""
    random = torch.Generator().manual_seed(0)
    directions = torch.eye(6)[:3] * 4
    which = torch.tensor([0, 1] * 100 + [1, 2] * 100)
    vectors = directions[which] + 0.05 * torch.randn(400, 6, generator=random)
    tokens = Tokens(vectors, torch.zeros(400).long(), torch.arange(400) < 200)
    settings = Saeuron(**{**SMALL, "active": 1, "epochs": 60}, features=1, learning_rate=1e-2)
    torch.manual_seed(0)
    sae = settings._learn(vectors, random)
    chosen = settings.choose(sae, tokens, 1)
    assert int(sae.decoder[chosen["features"][0, 0]].abs().argmax()) == 0
    codes = largest(sae.activations(vectors), 1)[:, chosen["features"][0, 0]].detach()
    assert float(chosen["means"]) == pytest.approx(float(codes.mean()), rel=1e-3)
    assert float(chosen["concepts"]) == pytest.approx(float(codes[:200].mean()), rel=1e-3)


@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_the_patch_edits_one_blocks_output(halves, pipeline, short) -> None:
    erased = Saeuron(**SMALL, features=3, strength=-5.0, halves=halves)(pipeline, short, Meter())
    tensors, name = erased.patch.tensors, "up_blocks.1.attentions.1"
    kept = {"base": [], "edited": []}
    patched.install(erased.patch, erased.pipeline)
    for key, each in (("base", pipeline), ("edited", erased.pipeline)):
        states = texts.states(each, ["", "", "a square", "a red square beside a ring"])
        handle = each.unet.get_submodule(name).register_forward_hook(
            lambda _, __, output, key=key: kept[key].append(output[0])
        )
        with torch.no_grad():
            # Nearest to the first of two steps, 501 and 1.
            each.unet(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 400, states)
        handle.remove()
    base, edited = (each[0].movedim(1, -1).double() for each in kept.values())
    step = int(np.argmin(np.abs(tensors["times"].numpy() - 400)))
    weight, bias, decoder, centre = (
        tensors[each].double() for each in ("encoder.weight", "encoder.bias", "decoder", "centre")
    )
    changed = 0
    for sample in range(4):
        for token, now in zip(base[sample].flatten(0, 1), edited[sample].flatten(0, 1)):
            codes = torch.relu(weight @ (token - centre) + bias)
            edge = codes.sort().values[-4]
            expected = token.clone()
            for place, feature in enumerate(tensors["features"][step]):
                code = codes[feature]
                if code >= edge and code > tensors["means"][step, place] and (halves == "both" or sample > 1):
                    wanted = code * -5.0 * tensors["concepts"][step, place]
                    expected += (wanted - code) * decoder[feature]
                    changed += 1
            torch.testing.assert_close(now, expected, rtol=1e-3, atol=1e-4)
    assert changed


def test_a_block_that_is_not_there_is_told(pipeline, short) -> None:
    with pytest.raises(
        UserError, match=r"block: 'up_blocks.0.attentions.1': no transformer of this UNet; use one of"
    ):
        Saeuron(**SMALL, block="up_blocks.0.attentions.1")(pipeline, short, Meter())
