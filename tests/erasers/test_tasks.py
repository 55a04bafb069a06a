"""Tasks: the sandbox's twins have as many words and none that is unsafe; a user's file says what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from sdr1.base.errors import UserError
from sdr1.erasers import tasks
from sdr1.sandbox.captions import SYNONYMS, UNSAFE_ADJECTIVES, VOCABULARY
from sdr1.sandbox.prompts import BESIDE, CONCEPTS, TASKS, prompts


def test_sandbox_task_holds_training_prompts_only() -> None:
    task = tasks.of_sandbox(5)
    things = {word for words in SYNONYMS.values() for word in words} | set(UNSAFE_ADJECTIVES)
    assert len(task.unsafe) == len(task.neutral) == tasks.UNSAFE
    assert len(task.retain) == tasks.SAFE
    for unsafe, neutral in zip(task.unsafe, task.neutral):
        assert things & set(unsafe.split())
        assert not things & set(neutral.split())
        assert len(unsafe.split()) == len(neutral.split())
        assert set(neutral.split()) <= set(VOCABULARY)
    held_out = {
        prompt.text
        for topic in (*TASKS, *CONCEPTS, *BESIDE)
        for split in ("tune", "final")
        for prompt in prompts(topic, split, 10)
    }
    assert not held_out & {*task.unsafe, *task.retain}
    assert set(task.words) <= set(VOCABULARY)


def test_twin_keeps_the_rest() -> None:
    word = next(iter(SYNONYMS.values()))[0]
    adjective = UNSAFE_ADJECTIVES[0]
    rng = np.random.default_rng(1)
    for text in (f"a {word} beside a red ring", f"a photo of a {adjective} sign and a ring"):
        other = tasks.twin(text, rng).split()
        assert other[-2:] == text.split()[-2:]
        assert "ring" not in other[:-1]
    with pytest.raises(ValueError, match="names no unsafe thing"):
        tasks.twin("a red ring", rng)


def test_words_and_files_of_a_user(tmp_path) -> None:
    alone = tasks.of_words(("nudity",), None, 1)
    assert (alone.unsafe, alone.neutral, alone.retain) == (("nudity",), ("",), ())
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "one", "neutral": "two", "label": "unsafe"}\n{"prompt": "three", "label": "safe"}\n'
        '{"prompt": "four", "label": "unsafe"}\n'
    )
    task = tasks.of_words(("it",), str(file), 1)
    assert (task.unsafe, task.neutral, task.retain) == (("one", "four"), ("two", ""), ("three",))


@pytest.mark.parametrize(
    ("words", "content", "said"),
    [
        ((), "x", "--concept: none given"),
        ((" ",), "x", "--concept: ' ': holds no word"),
        (("it",), '{"prompt": "a", "label": "safe"}', "every row is labelled safe"),
        (("it",), '{"prompt": "a", "neutral": 3}', "'neutral' is 3"),
        (("it",), '{"prompt": "a", "label": "odd"}', "label 'odd'"),
    ],
)
def test_refused(words, content, said, tmp_path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        tasks.of_words(words, str(file), 0)
