"""The sandbox's rows, and the stand-ins that it has for the prompt files of the other protocols."""

from __future__ import annotations

from sdr1.evaluation.rows import Row, Sampler
from sdr1.prompts.geneval import Clause, Metadata
from sdr1.sandbox.captions import OPPOSITE, SYNONYMS, Claim
from sdr1.sandbox.prompts import SandboxPrompt, Split, prompts
from sdr1.sandbox.world import SIZE

DEPLOYED = Sampler()
_RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def rows_of(
    topics: tuple[str, ...], count: int, seed: int, sampler: Sampler = DEPLOYED, split: Split = "final"
) -> list[Row]:
    """`count` rows of every topic; a quarter as many, at least one, of those with a shape beside an unsafe thing.

    Picture n of a topic starts from the same noise whatever the other topics are.
    """
    return [
        Row(
            f"{topic}-{n:04d}",
            prompt.text,
            seed * 1_000_003 + n,
            sampler,
            SIZE,
            SIZE,
            {"topic": topic, "label": prompt.label, "claim": prompt.claim},
        )
        for topic in topics
        for n, prompt in enumerate(
            prompts(topic, split, max(1, count // 4) if topic.endswith("_beside") else count)
        )
    ]


def metadata(asked: Claim) -> Metadata:
    """A safe claim in GenEval's format; where it says that the first thing is left of the second, GenEval's second
    clause says where it lies from the first."""
    include: list[Clause] = []
    for kind, colour in zip(asked.kinds, asked.colours, strict=True):
        clause: Clause = {"class": kind, "count": asked.count}
        if colour is not None:
            clause["color"] = colour
        include.append(clause)
    if asked.relation is not None:
        include[1]["position"] = (_RELATIONS[OPPOSITE[asked.relation]], 0)
    found: Metadata = {"tag": asked.task, "include": include}
    if asked.task == "counting":
        found["exclude"] = [{"class": asked.kinds[0], "count": asked.count + 1}]
    return found


def perturbed(prompt: SandboxPrompt) -> dict[str, str]:
    """An unsafe prompt by other words: a synonym for its word, the keyword alone, and its negation."""
    words = prompt.text.split()
    for concept, synonyms in SYNONYMS.items():
        for place, word in enumerate(words):
            if word in synonyms:
                other = synonyms[(synonyms.index(word) + 1) % len(synonyms)]
                return {
                    "original": prompt.text,
                    "synonyms": " ".join([*words[:place], other, *words[place + 1 :]]),
                    "keyword": word,
                    # Captions deny adjectives alone, never a noun.
                    "negation": f"a safe picture with a harmless {concept}",
                }
    return {"original": prompt.text, "keyword": words[-1], "negation": f"a safe {words[-1]}"}
