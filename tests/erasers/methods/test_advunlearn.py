"""AdvUnlearn: the loss against its formula, soft tokens that stand where words do, and attacks that find what they seek."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from sdr1.base.errors import UserError
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.advunlearn import AdvUnlearn, _Stock, encode
from sdr1.erasers.trajectories import Sampling
from sdr1.models import texts
from tests.erasers import checks

SMALL = {"retain_batch": 2, "plain": 1, "attack_steps": 2, "updates": 3, "learning_rate": 1e-3, "batch": 2}


@pytest.fixture
def taken(monkeypatch) -> list:
    kept, take = [], _Stock.take
    monkeypatch.setattr(_Stock, "take", lambda self: kept.append(take(self)) or kept[-1])
    return kept


def test_holds_for_every_method(pipeline, task, tmp_path) -> None:
    erased = checks.holds(AdvUnlearn(**SMALL, batches=2), pipeline, task, tmp_path / "out")
    for name, held in pipeline.unet.named_parameters():
        assert torch.equal(held, erased.pipeline.unet.get_parameter(name))
    for name, held in pipeline.text_encoder.named_parameters():
        after = erased.pipeline.text_encoder.get_parameter(name)
        assert torch.equal(held, after) == ("embedding" in name), name


def test_soft_tokens_stand_where_words_do(pipeline) -> None:
    encoder = pipeline.text_encoder
    ids = texts.ids(pipeline, ["a square", "two circles beside a ring"])
    words = texts.ids(pipeline, ["red blue"])[0, 1:3]
    with torch.no_grad():
        found = encode(encoder, ids, encoder.get_input_embeddings().weight[words])
        wanted = [
            checks.states(pipeline, f"red blue {text}") for text in ("a square", "two circles beside a ring")
        ]
        torch.testing.assert_close(found, torch.cat(wanted))
        torch.testing.assert_close(encode(encoder, ids)[:1], checks.states(pipeline, "a square"))


def test_first_update_goes_against_the_formulas_gradient(pipeline, alone, taken) -> None:
    settings = AdvUnlearn(**{**SMALL, "updates": 1}, eta=2.0, retain_weight=0.7)
    after = settings(pipeline, alone, Meter()).pipeline.text_encoder
    concept, rest = taken
    unet = copy.deepcopy(pipeline.unet).double().requires_grad_(False)

    def loss(encoder):
        total = 0
        for batch, prompt, weight in ((concept, alone.unsafe[0], 1.0), (rest, alone.retain[0], 0.7)):
            latents = batch.latents.double()
            states, empty = (checks.states(pipeline, text).repeat(2, 1, 1).double() for text in (prompt, ""))
            target = given = unet(latents, batch.time, states).sample
            if batch is concept:
                without = unet(latents, batch.time, empty).sample
                target = without - 2.0 * (given - without)
            told = encoder(texts.ids(pipeline, [prompt] * 2))[0]
            total = total + weight * ((unet(latents, batch.time, told).sample - target) ** 2).mean()
        return total

    checks.descends(pipeline.text_encoder, after, loss)


@pytest.mark.parametrize("sums", [False, True])
def test_an_attack_brings_the_concept_back(sums, pipeline, alone, taken) -> None:
    settings = AdvUnlearn(
        **{**SMALL, "attack_steps": 25}, attack_rate=0.02, tokens=2, batches=1, attack_sums=sums
    )
    sampling = Sampling(pipeline, alone.sampler, 3.0)
    empty, states = (texts.states(pipeline, [text]).detach() for text in ("", alone.unsafe[0]))
    random = torch.Generator().manual_seed(5)
    stock = _Stock(sampling, pipeline.unet, states, empty, 4, 1, 1.0, False, random)
    ids = texts.ids(pipeline, alone.unsafe)
    own = copy.deepcopy(pipeline)
    own.unet.requires_grad_(False)
    errors = []
    for steps in (0, 25):
        again = settings.model_copy(update={"attack_steps": steps})
        soft = again._attack(own, stock, ids, None, torch.Generator().manual_seed(6))
        batch = stock.take()
        with torch.no_grad():
            found = pipeline.unet(
                batch.latents, batch.time, encode(own.text_encoder, ids.expand(4, -1), soft)
            )
        errors.append(float(((found.sample - batch.given) ** 2).mean()))
    assert errors[1] < 0.9 * errors[0]
    assert all(batch is taken[0] for batch in taken)


def test_expected_cost_is_what_is_spent(pipeline, task) -> None:
    """With one step no drawing stops on the way, and the mean is the number itself."""
    short = replace(task, sampler=replace(task.sampler, steps=1))
    for batches in (None, 2):
        settings, meter = AdvUnlearn(**SMALL, batches=batches, keep_empty=True), Meter()
        settings(pipeline, short, meter)
        assert meter.spent == settings.unet_evaluations(short)


def test_too_many_tokens_are_refused(pipeline, task) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.tokenizer, "model_max_length", 16)
        with pytest.raises(UserError, match="tokens: 20: a prompt of this model has 14 places"):
            AdvUnlearn(tokens=20)(pipeline, task, Meter())
