"""Maps: the probabilities that attention itself multiplies its values by, and the tokens that name a concept."""

from __future__ import annotations

import torch

from sdr1.erasers import maps
from sdr1.models import texts


@torch.no_grad()
def test_probabilities_times_values_are_attentions_output(pipeline) -> None:
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    kept = []
    handle = attention.register_forward_hook(lambda _, __, output: kept.append(output))
    latents, states = torch.randn(2, 4, 8, 8), texts.states(pipeline, ["a ring", "two circles"])
    with maps.recorded(pipeline.unet) as seen:
        pipeline.unet(latents, 300, encoder_hidden_states=states)
    handle.remove()
    assert len(seen) == 10
    probabilities = seen["mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert probabilities.shape == (2, 2, 1, 77)
    values = attention.to_v(states).unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (probabilities @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.to_out[0](mixed), kept[0], rtol=1e-3, atol=1e-5)
    assert not attention._forward_pre_hooks


def test_tokens(pipeline) -> None:
    prompts = ["a red square", "a ring", "a square beside a square"]
    ends = maps.ends(pipeline, prompts).tolist()
    read = [pipeline.tokenizer.tokenize(prompt) for prompt in prompts]
    assert ends == [1 + len(each) for each in read]
    words = maps.tokens(pipeline, prompts, ("square",), "words")
    for each, parts, found in zip(prompts, read, words):
        named = [1 + n for n, part in enumerate(parts) if part == "square</w>"]
        assert found.nonzero()[:, 0].tolist() == (named or list(range(1, 1 + len(parts)))), each
    padding = maps.tokens(pipeline, prompts, ("square",), "padding")
    assert [each.nonzero()[:, 0].tolist() for each in padding] == [list(range(end, 77)) for end in ends]
    assert torch.equal(maps.tokens(pipeline, prompts, ("square",), "both"), words | padding)
