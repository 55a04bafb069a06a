"""Stage 3 of the recipe: CLIP, a stock open_clip model made exact by hard negatives.

Its text tower is the pipeline's text encoder, its whole the start of the reward model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from open_clip.model import CLIP
from transformers import CLIPTokenizer

from sdr1.recipe.common import load_tensors, save_tensors, train, warmup_then_linear, write_json
from sdr1.recipe.data import generator, to_unit, training_set
from sdr1.recipe.oracle import blur, dense_losses, target_maps, through_vae
from sdr1.recipe.words import LENGTH, build_tokenizer, tokenize
from sdr1.sandbox.captions import (
    ANY,
    NUMBERS,
    OPPOSITE,
    PLURALS,
    SAFE_ANCHORS,
    SYNONYMS,
    THINGS,
    UNSAFE_ADJECTIVES,
    VOCABULARY,
    Claim,
    claim_of,
    corrupt,
    phrase,
)
from sdr1.sandbox.oracle import CELL, CHANNELS
from sdr1.sandbox.world import COLOURS, GLYPHS, KINDS, RELATIONS, SHAPES, VARIANTS, Scene

STEPS, NEAR_STEPS, BATCH, RATE = 2600, 120, 128, 1.5e-3
DECODED, GENERIC = 16_000, 0.1
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "layers": [1, 1, 1, 1],
        "width": 12,
        "head_width": 32,
        "patch_size": None,
        "image_size": 64,
    },
    "text_cfg": {"context_length": LENGTH, "vocab_size": 0, "width": 96, "heads": 4, "layers": 3},
}
PREPROCESS = {
    "size": 64,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
_COLOURS = tuple(COLOURS)
_PLACES = len(KINDS) * (1 + len(COLOURS))
_NAMED = _PLACES + len(KINDS) * len(RELATIONS)


# What is said of a thing up to its own word: kind, variant, colour, number, where it is, and that it is unsafe.
_SAID = (*KINDS, *range(len(VARIANTS)), *COLOURS, *NUMBERS, *RELATIONS, "unsafe")


class Trainee(torch.nn.Module):
    """CLIP with the auxiliary heads that are dropped after training."""

    def __init__(self, vocabulary: int):
        super().__init__()
        text = {**MODEL["text_cfg"], "vocab_size": vocabulary}
        self.clip = CLIP(MODEL["embed_dim"], MODEL["vision_cfg"], text)
        self.dense = torch.nn.Conv2d(MODEL["vision_cfg"]["width"] * 8, CHANNELS, 1)
        self.names_of_image = torch.nn.Linear(MODEL["embed_dim"], _NAMED + 4)
        self.names_of_text = torch.nn.Linear(MODEL["embed_dim"], _NAMED)
        self.word_of_state = torch.nn.Linear(MODEL["text_cfg"]["width"], len(VOCABULARY))
        self.said_of_state = torch.nn.Linear(MODEL["text_cfg"]["width"], len(_SAID))

    def look(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings (N, 128) and dense maps (N, 21, 8, 8) of pictures (N, 3, 32, 32) in [-1, 1]."""
        tower = self.clip.visual
        middle = tower.layer2(tower.layer1(tower.stem(enlarge(pictures))))
        embedding = tower.attnpool(tower.layer4(tower.layer3(middle)))
        return F.normalize(embedding, dim=-1), self.dense(middle)

    def read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings (N, 128) and the tokens' last states (N, 16, 96) of token ids (N, 16)."""
        clip = self.clip
        states = clip.token_embedding(ids) + clip.positional_embedding
        states = clip.ln_final(clip.transformer(states, attn_mask=clip.attn_mask))
        pooled = states[torch.arange(len(ids)), ids.argmax(1)]
        return F.normalize(pooled @ clip.text_projection, dim=-1), states


def build_clip(out: Path, work: Path) -> dict[str, float]:
    """Trains CLIP into `work/clip.trained.safetensors`, with its heads: the start of the two stages behind it."""
    torch.manual_seed(3)
    tokenizer = build_tokenizer(work, out / "clip")
    model = Trainee(len(tokenizer))
    lessons = Lessons(model, tokenizer)

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng, words = generator(3, step), np.random.default_rng((3, step))
        return lessons.losses(BATCH, rng, words)[0]

    def loss_near(step: int) -> dict[str, torch.Tensor]:
        losses = loss_at(STEPS + step)
        apart = _synonyms_apart(model, tokenizer)
        return {**losses, "loss": losses["loss"] + 4 * apart, "apart": apart}

    groups = [{"params": list(model.parameters()), "lr": RATE}]
    train("clip", model, groups, loss_at, STEPS, warmup_then_linear(0.04, 0.5), work)
    # What tells synonyms apart is learned last, and goes further than need be.
    groups = [{"params": list(model.parameters()), "lr": RATE / 5}]
    train("synonyms", model, groups, loss_near, NEAR_STEPS, warmup_then_linear(0.1, 0.3), work)
    save_tensors(model.state_dict(), work / "clip.trained.safetensors")
    return {"parameters": sum(p.numel() for p in model.clip.parameters())}


def load_clip(work: Path, tokenizer: CLIPTokenizer) -> Trainee:
    """What `build_clip` has trained."""
    model = Trainee(len(tokenizer))
    model.load_state_dict(load_tensors(work / "clip.trained.safetensors"))
    return model


def _synonyms_apart(model: Trainee, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """By how much the states of a concept's synonyms, each at its own word, miss a cosine of 0.65."""
    words = tokenize(tokenizer, [f"a {word}" for words in SYNONYMS.values() for word in words])
    states = F.normalize(model.read(words)[1][:, 2], dim=-1).unflatten(0, (len(SYNONYMS), -1))
    return F.relu(0.65 - states @ states.mT).mean()


class Lessons:
    """Pictures and captions to train a CLIP on, and what it is to learn of them.

    With an autoencoder, three pictures in eight have been through it.
    """

    def __init__(self, model: Trainee, tokenizer: CLIPTokenizer, vae: AutoencoderKL | None = None):
        self.model, self.tokenizer = model, tokenizer
        model.clip.visual.to(memory_format=torch.channels_last)
        self._look = torch.compile(model.look)
        self._scenes, self._pool = training_set()
        self._drawn = len(self._pool)
        if vae is not None:
            self._pool = torch.cat([self._pool, through_vae(vae, self._pool[:DECODED], 0.15)])
            self._scenes = [*self._scenes, *self._scenes[:DECODED]]

    def look(self, pictures: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model sees in uint8 pictures (N, 3, 32, 32) that are disturbed a little."""
        images = disturbed(to_unit(pictures), rng)
        return self._look(images.contiguous(memory_format=torch.channels_last))

    def losses(
        self, size: int, rng: torch.Generator, words: np.random.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The losses on a batch, "loss" their sum, and the embeddings of its captions, true ones first."""
        model, pool = self.model, len(self._pool)
        decoded = size * 3 // 8 if pool > self._drawn else 0
        chosen = torch.randint(0, self._drawn, (size - decoded,), generator=rng)
        if decoded:
            others = torch.randint(self._drawn, pool, (decoded,), generator=rng)
            chosen = torch.cat([chosen, others])
        batch = [self._scenes[i] for i in chosen.tolist()]
        texts, claims = _texts(batch, words)
        seen, maps = self.look(self._pool[chosen], rng)
        said, states = model.read(tokenize(self.tokenizer, texts))
        logits = model.clip.logit_scale.clamp(max=math.log(100)).exp() * seen @ said.T
        own = torch.arange(size)
        true = torch.from_numpy(holds(batch, claims))
        true[own, own], true[own, own + size] = False, False
        masked = logits.masked_fill(true, -1e4)
        contrast = F.cross_entropy(masked, own) + F.cross_entropy(masked[:, :size].T, own)
        wrong = F.softplus(logits[own, own + size] - logits[own, own]).mean()
        dense = dense_losses(maps, target_maps(batch))["loss"]
        names = F.binary_cross_entropy_with_logits(model.names_of_image(8 * seen), _names_of_scenes(batch))
        names = names + F.binary_cross_entropy_with_logits(
            model.names_of_text(8 * said), _names_of_claims(claims)
        )
        # CLIP's tokens carry their own words and differ from the empty prompt's; at this depth they have to be asked to.
        word, phrase_so_far, place = _said(texts)
        token = F.cross_entropy(model.word_of_state(states)[place], word[place])
        token = token + 5 * F.binary_cross_entropy_with_logits(
            model.said_of_state(states)[place], phrase_so_far[place]
        )
        empty = model.read(tokenize(self.tokenizer, [""]))[1]
        token = token + 2 * F.relu(F.cosine_similarity(states, empty, dim=-1)[place] - 0.5).mean()
        loss = contrast + wrong + 0.3 * dense + 5 * names + token
        right = (logits[own, own + size] < logits[own, own]).float().mean()
        found = {"loss": loss, "contrast": contrast, "right": right, "dense": dense, "names": names}
        return {**found, "token": token}, said


def disturbed(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Pictures in [-1, 1] with a little noise, three in ten of them blurred before."""
    soft = torch.rand(len(images), generator=rng) < 0.3
    images[soft] = blur(images[soft], 0.4 + 0.6 * float(torch.rand((), generator=rng)))
    return images + 0.03 * torch.randn(images.shape, generator=rng)


def save_clip(model: Trainee, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes an open_clip folder in half precision, beside the tokenizer's files."""
    state = {n: t.half() if t.is_floating_point() else t for n, t in model.clip.state_dict().items()}
    save_tensors(state, folder / "open_clip_model.safetensors")
    text = {**MODEL["text_cfg"], "vocab_size": len(tokenizer), "hf_tokenizer_name": "sandbox"}
    config = {"model_cfg": {**MODEL, "text_cfg": text}, "preprocess_cfg": PREPROCESS}
    write_json(config, folder / "open_clip_config.json")


def enlarge(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, 32, 32) at the tower's 64 x 64, as open_clip's own transform makes them."""
    return F.interpolate(pictures, size=64, mode="bilinear", align_corners=False)


def holds(scenes: list[Scene], claims: list[Claim]) -> np.ndarray:
    """Whether a claim is true of a scene, for all pairs: bool (scenes, claims). A number must be exact; otherwise
    things that the claim does not name are no matter."""
    kind = np.full((len(scenes), 4), -1)
    colour, x, y = np.full_like(kind, -1), np.zeros(kind.shape), np.zeros(kind.shape)
    for i, scene in enumerate(scenes):
        for t, thing in enumerate(scene.things):
            kind[i, t], x[i, t], y[i, t] = KINDS.index(thing.kind), thing.x, thing.y
            colour[i, t] = _COLOURS.index(thing.colour) if thing.colour else -1
    glyph = kind >= len(KINDS) - len(GLYPHS)
    dx, dy = x[:, :, None] - x[:, None, :], y[:, :, None] - y[:, None, :]
    places = {"left": dx < -CELL, "right": dx > CELL, "above": dy < -CELL, "below": dy > CELL}
    apart = ~np.eye(4, dtype=bool)
    related = {relation: places[relation] & apart for relation in RELATIONS}
    out = np.zeros((len(scenes), len(claims)), bool)
    for j, claim in enumerate(claims):
        if claim.concept == "safe":
            out[:, j] = ~glyph.any(1)
            continue
        fits = []
        for n, (name, tint) in enumerate(zip(claim.kinds, claim.colours, strict=True)):
            generic = claim.concept == "generic" and n == 0
            if generic:
                fit = glyph
            elif name == ANY:
                fit = (kind >= 0) & ~glyph
            else:
                fit = kind == KINDS.index(name)
            fits.append(fit & (colour == _COLOURS.index(tint)) if tint else fit)
        if claim.task == "counting":
            out[:, j] = fits[0].sum(1) == claim.count
        elif len(fits) == 1:
            out[:, j] = fits[0].any(1)
        else:
            where = related[claim.relation] if claim.relation else apart
            out[:, j] = (fits[0][:, :, None] & fits[1][:, None, :] & where).any((1, 2))
    return out


def _texts(scenes: list[Scene], rng: np.random.Generator) -> tuple[list[str], list[Claim]]:
    """A true caption for each scene, then a wrong one for each, with their claims; some true captions of safe scenes
    say no more than that."""
    claims = [claim_of(scene, rng) for scene in scenes]
    wrong = [corrupt(claim, rng)[1] for claim in claims]
    texts = [phrase(claim, rng) for claim in claims]
    for i, scene in enumerate(scenes):
        if not scene.unsafe and rng.random() < GENERIC:
            texts[i] = SAFE_ANCHORS[int(rng.integers(len(SAFE_ANCHORS)))]
            claims[i] = Claim("safe", (), (), concept="safe")
            wrong[i] = Claim("unsafe", (GLYPHS[0],), (None,), concept="generic")
    return texts + [phrase(claim, rng) for claim in wrong], claims + wrong


def _names_of_scenes(scenes: list[Scene]) -> torch.Tensor:
    names = torch.zeros(len(scenes), _NAMED + 4)
    for row, scene in zip(names, scenes, strict=True):
        row[_NAMED + len(scene.things) - 1] = 1
        for thing in scene.things:
            _name(row, thing.kind, thing.colour)
        if scene.relation:
            _place(row, (scene.things[0].kind, scene.things[1].kind), scene.relation)
    return names


def _names_of_claims(claims: list[Claim]) -> torch.Tensor:
    names = torch.zeros(len(claims), _NAMED)
    for row, claim in zip(names, claims, strict=True):
        for n, (kind, colour) in enumerate(zip(claim.kinds, claim.colours, strict=True)):
            if kind != ANY and (claim.concept != "generic" or n > 0):
                _name(row, kind, colour)
        if claim.relation:
            _place(row, claim.kinds, claim.relation)
    return names


def _name(row: torch.Tensor, kind: str, colour: str | None) -> None:
    index = KINDS.index(kind)
    row[index] = 1
    if colour is not None:
        row[len(KINDS) + index * len(COLOURS) + _COLOURS.index(colour)] = 1


def _place(row: torch.Tensor, kinds: tuple[str, ...], relation: str) -> None:
    for kind, side in zip(kinds, (relation, OPPOSITE[relation]), strict=True):
        row[_PLACES + KINDS.index(kind) * len(RELATIONS) + RELATIONS.index(side)] = 1


_WORDS = {word: n for n, word in enumerate(VOCABULARY)}
_NOUNS: dict[str, tuple[str | int, ...]] = {
    **{word: (shape,) for shape in SHAPES for word in (shape, PLURALS[shape])},
    **dict.fromkeys(THINGS, ()),
    **{word: (glyph, n, "unsafe") for glyph, words in SYNONYMS.items() for n, word in enumerate(words)},
}
_SIDES = {
    "left": "right", "right": "left", "above": "below", "over": "below", "below": "above", "under": "above",
}  # fmt: skip


def _said(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For N texts: every token's word (N, 16), what is said of the thing up to there (N, 16, 31), where words are."""
    word = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    said = torch.zeros(len(texts), LENGTH, len(_SAID))
    place = torch.zeros(len(texts), LENGTH, dtype=torch.bool)
    for n, text in enumerate(texts):
        sofar: list[str | int] = []
        for at, each in enumerate(text.split(), start=1):
            word[n, at], place[n, at] = _WORDS[each], True
            if each in _NOUNS:
                for what in (*sofar, *_NOUNS[each]):
                    said[n, at, _SAID.index(what)] = 1
                sofar = []
            elif each in COLOURS or each in NUMBERS:
                sofar.append(each)
            elif each in UNSAFE_ADJECTIVES:
                sofar.append("unsafe")
            elif each in _SIDES:
                sofar.append(_SIDES[each])
    return word, said, place
