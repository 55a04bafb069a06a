"""UCE: its normal equations hold in float64, for pairs and retained states that are put together by hand."""

from __future__ import annotations

import pytest
import torch

from sdr1.erasers import layers
from sdr1.erasers.meter import Meter
from sdr1.erasers.methods.uce import Uce
from tests.erasers import checks


@pytest.mark.parametrize("form", ["old", "head", "aligned"])
def test_holds_for_every_method(form, pipeline, task, tmp_path) -> None:
    checks.holds(Uce(form=form, retain_share=1.0), pipeline, task, tmp_path / "out")


def _by_hand(pipeline, form, unsafe, neutral, retain):
    """Lists of (state, target) and of kept states, one token after the other."""

    def read(text):
        ids = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            states = pipeline.text_encoder(ids.input_ids)[0][0].double()
        return states, int((ids.input_ids[0] == pipeline.tokenizer.eos_token_id).nonzero()[0]) - 1

    erased, kept = [], []
    for text, twin in zip(unsafe, neutral):
        (states, last), (others, other) = read(text), read(twin)
        if form == "aligned":
            erased += [(states[n], others[n]) for n in range(1, 77)]
        elif form == "head":
            erased.append((states[last], others[other]))
        else:
            erased += [(states[last + n], others[other + n]) for n in range(77 - max(last, other))]
    for text in retain:
        states, last = read(text)
        kept += [states[last]] if form == "head" else list(states[1 if form == "aligned" else 0 :])
    return erased, kept


@pytest.mark.parametrize("form", ["old", "head", "aligned"])
def test_normal_equations(form, pipeline, task) -> None:
    settings = Uce(form=form, closeness=0.3, erase_weight=2.0, retain_weight=0.7)
    edited = layers.kv(settings(pipeline, task, Meter()).pipeline.unet)
    erased, kept = _by_hand(pipeline, form, task.unsafe, task.neutral, task.retain)
    assert len(edited) == 2 * (3 + 1 + 6)
    for name, layer in layers.kv(pipeline.unet).items():
        base, now = layer.weight.double().detach(), edited[name].weight.double()
        left, right = 0.3 * torch.eye(16).double(), 0.3 * base
        for state, target in erased:
            left = left + 2.0 * torch.outer(state, state)
            right = right + 2.0 * torch.outer(base @ target, state)
        for state in kept:
            left = left + 0.7 * torch.outer(state, state)
            right = right + 0.7 * torch.outer(base @ state, state)
        # What is left is the weights' rounding to float32.
        rest = (now @ left - right).abs().max() / right.abs().max()
        assert rest < 1e-6
        assert (base @ left - right).abs().max() / right.abs().max() > 1e-3


def test_share_makes_both_sums_of_weights_equal() -> None:
    erase, keep = Uce(retain_share=1.0, erase_weight=2.0).weights(30, 90)
    assert erase * 30 == pytest.approx(keep * 90)
    assert Uce().weights(30, 90) == (1.0, 1.0)


def test_without_prompts_to_keep_the_papers_code_keeps_the_empty_one(pipeline, task) -> None:
    from dataclasses import replace

    from sdr1.erasers.methods.uce import retained

    alone = replace(task, retain=())
    assert len(retained(pipeline, alone, "old")) == 77
    assert len(retained(pipeline, alone, "head")) == 0
