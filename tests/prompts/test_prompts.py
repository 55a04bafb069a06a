"""The stream of groups: a function of the seed and the iteration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdr1.base.errors import UserError
from sdr1.base.records import Prompt
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.policy import PolicyConfig
from sdr1.config.prompts import PromptSource
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.models import pipeline_files
from sdr1.prompts.compose import TASKS, compose, write
from sdr1.prompts.labels import read as read_source
from sdr1.prompts.stream import PromptStream, _apportion, describe_truncated, load

PROMPTS = [Prompt(f"{label} {n}", label) for label in ("safe", "unsafe") for n in range(5)]


def test_every_epoch_holds_every_prompt_once_and_needs_no_position(small):
    config = small(5, prompts={"per_iteration": 2, "unsafe_share": 0.5})
    stream = PromptStream([PROMPTS], config)
    epoch = [task.prompt.text for n in range(5) for task in stream.tasks(n, version=n)]
    assert sorted(epoch) == sorted(prompt.text for prompt in PROMPTS)
    assert PromptStream([PROMPTS], config).tasks(3, version=3) == stream.tasks(3, version=3)


def read(source: PromptSource | str) -> list[Prompt]:
    prompts, _ = read_source(source)
    return prompts


def written(tmp_path, name: str, text: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def source(path: str, **options) -> PromptSource:
    return PromptSource(path=path, **options)


@pytest.mark.parametrize("seed_column", ["evaluation_seed", "sd_seed"])
def test_i2p_is_unsafe_and_its_categories_can_say_otherwise(tmp_path, seed_column):
    path = written(
        tmp_path,
        "i2p.csv",
        f'prompt,categories,hard,{seed_column},case_number\n"a thing, grim","violence, shocking",0,1,0\nodd,hate,1,2,1\n',
    )
    assert read(path) == [Prompt("a thing, grim", "unsafe"), Prompt("odd", "unsafe")]
    by_category = read(source(path, unsafe_categories=("shocking",)))
    assert [prompt.label for prompt in by_category] == ["unsafe", "safe"]


def test_labels_by_file_and_by_column(tmp_path):
    path = written(tmp_path, "a.csv", "caption,kind\na pear,safe\nan axe,unsafe\n")
    assert [prompt.label for prompt in read(path)] == [None, None]
    assert [prompt.label for prompt in read(source(path, label_column="kind"))] == ["safe", "unsafe"]
    assert {prompt.label for prompt in read(source(path, label="unsafe"))} == {"unsafe"}
    assert read(source(path, column="kind"))[0].text == "safe"
    bom = written(tmp_path, "b.txt", b"\xef\xbb\xbfa pear\n")
    assert read(bom) == [Prompt("a pear", None)]


def test_an_empty_cell_among_others_is_skipped_and_said(tmp_path, small):
    """As in the I2P csv that everybody uses, where one of 4,703 prompts is empty."""
    lines = ["prompt,label,categories", *(f"pear {n},safe,hate" for n in range(9)), '"",safe,', "fig,,"]
    path = written(tmp_path, "a.csv", "\n".join(lines))
    assert [prompt.label for prompt in read(path)] == ["safe"] * 9 + [None]
    by_category = source(path, label_column="categories", unsafe_categories=("hate",))
    assert [prompt.label for prompt in read(by_category)] == ["unsafe"] * 9 + ["safe"]
    stream = load(small(prompts={"path": path, "label": "safe", "unsafe_share": None}))
    assert len(stream.prompts) == 10
    assert stream.describe()[-1] == (
        f"prompts.path: {path!r}: 10 prompts in column 'prompt'; 1 of 11 rows skipped, which have none, the first is "
        "line 11"
    )


def test_labels_by_the_sign_of_the_safety_score(tmp_path, small):
    path = written(tmp_path, "a.txt", "a safe picture\na deadly thing\n")
    config = small(prompts={"path": path, "label": "score"})
    assert {p.text: p.label for p in load(config).prompts} == {
        "a safe picture": "safe",
        "a deadly thing": "unsafe",
    }


def test_a_hub_dataset_by_the_real_library(tmp_path):
    written(tmp_path, "train.csv", "prompt,label\na pear,safe\n")
    assert read(f"hub:{tmp_path}:train") == [Prompt("a pear", "safe")]
    evaluated = PROTOCOLS["mma"].read_prompts(EvaluationConfig(prompts=f"hub:{tmp_path}"))
    assert evaluated is not None
    assert evaluated.describe() == f"prompts: 'hub:{tmp_path}': 1 prompts in column 'prompt'"
    with pytest.raises(UserError, match="prompts.path: 'hub:.*cannot be loaded"):
        read(f"hub:{tmp_path}:nosuch")


def test_a_mix_takes_its_weights_share_of_every_iteration(tmp_path, small):
    many = written(tmp_path, "many.txt", "".join(f"pear {n}\n" for n in range(40)))
    few = written(tmp_path, "few.csv", "prompt,categories\nan axe,violence\na saw,violence\n")
    mix = [{"path": many, "label": "safe", "weight": 3}, {"path": few}]
    config = small(prompts={"mix": mix, "per_iteration": 8, "unsafe_share": None})
    stream = load(config)
    for iteration in range(5):
        labels = [task.prompt.label for task in stream.tasks(iteration, iteration)]
        assert labels.count("unsafe") == 2
        assert {t.prompt.text for t in stream.tasks(iteration, 0) if t.prompt.label == "unsafe"} == {
            "an axe",
            "a saw",
        }
    assert "40 safe; 6 groups an iteration" in stream.describe()[0]
    assert "2 unsafe; 2 groups an iteration" in stream.describe()[1]
    light = [mix[0], {**mix[1], "weight": 0.01}]
    with pytest.raises(UserError, match=r"prompts\.mix: .*few\.csv.*weight 0\.01"):
        load(small(prompts={"mix": light, "per_iteration": 8, "unsafe_share": None}))


@given(st.integers(0, 200), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_apportion_sums_up_and_is_off_by_less_than_one(total, weights):
    counts = _apportion(total, weights)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1


def test_long_prompts_are_named():
    tokenizer = pipeline_files.tokenizer(PolicyConfig())
    long = Prompt("a red circle " * 170, "safe")
    (line,) = describe_truncated([*PROMPTS, long], tokenizer)
    assert line.startswith(f"prompts: 1 longer than {tokenizer.model_max_length} tokens, cut there")
    assert "'a red circle" in line
    assert describe_truncated(PROMPTS[:1], tokenizer) == []


BAD = {
    "wrong columns": ("a.csv", "title,score\nx,1\n", {}, ["prompts.column", "title, score", "name the one"]),
    "column that is not there": (
        "a.csv",
        "prompt\nx\n",
        {"column": "text"},
        ["prompts.column: 'text'", "prompt"],
    ),
    "0 bytes": ("a.csv", "", {}, ["prompts.path", "no prompt"]),
    "0 bytes of text": ("a.txt", "", {}, ["prompts.path", "no prompt"]),
    "not UTF-8": ("a.txt", b"caf\xe9\n", {}, ["prompts.path", "not UTF-8 at byte 3", "save"]),
    "too many cells": ("a.csv", "prompt,label\na, b, c\n", {}, ["line 2", "cells", "quotes"]),
    "odd label": ("a.csv", "prompt,label\nx,bad\n", {}, ["line 2", "'bad'", "unsafe_categories"]),
    "unknown kind": ("a.xlsx", "x", {}, ["'.xlsx'", ".csv"]),
    "empty cell": ("a.csv", "prompt,label\n,safe\n", {}, ["line 2", "no 'prompt'"]),
}


@pytest.mark.parametrize(("name", "text", "options", "parts"), BAD.values(), ids=BAD)
def test_bad_prompt_files(tmp_path, name, text, options, parts):
    with pytest.raises(UserError) as caught:
        read(source(written(tmp_path, name, text), **options))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_composed_prompts_differ_and_follow_from_the_seed():
    rows = compose(600, seed=1)
    assert len({row["text"] for row in rows}) == 600
    assert rows == compose(600, seed=1)
    assert {row["text"] for row in rows} != {row["text"] for row in compose(600, seed=2)}
    assert {row["task"] for row in rows} == set(TASKS)
    assert {row["label"] for row in rows} == {"safe"}
    assert not any(" a apple" in row["text"] or "scarfs" in row["text"] for row in rows)


def test_composed_prompts_are_written_over_nothing_else(tmp_path):
    write(tmp_path / "a.jsonl", 6, seed=1)
    made = (tmp_path / "a.jsonl").read_bytes()
    write(tmp_path / "a.jsonl", 6, seed=1)
    with pytest.raises(UserError, match=r"OUT: .*a\.jsonl.*choose another"):
        write(tmp_path / "a.jsonl", 6, seed=2)
    assert (tmp_path / "a.jsonl").read_bytes() == made
    assert [prompt.label for prompt in read(str(tmp_path / "a.jsonl"))] == ["safe"] * 6
