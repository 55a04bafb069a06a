"""The reader of prompt files: what lines, cells, kinds and columns are, and one line for everything else."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import World
from sdr1.prompts import files as prompt_files
from sdr1.prompts import labels
from sdr1.prompts.files import ATTACK_COLUMNS, read


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path: str, **options) -> list[str]:
    return [entry.text for entry in read(path, **options).entries]


def refused(path: str, *parts: str, **options) -> None:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1500
    for part in parts:
        assert part in str(caught.value)


# What str.splitlines ends a line at beside \n, \r\n and \r.
OTHER_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_nothing_else(tmp_path, end):
    prompts = [f"a{other}pear" for other in OTHER_ENDS]
    lines = end.join(prompts) + end
    assert texts(written(tmp_path, "a.txt", lines)) == prompts
    assert texts(written(tmp_path, "a.csv", f"prompt{end}{lines}")) == prompts
    objects = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    assert texts(written(tmp_path, "a.jsonl", end.join(objects))) == prompts


def test_a_kind_is_its_suffix_in_any_case_and_others_are_refused(tmp_path):
    assert texts(written(tmp_path, "a.CSV", "prompt\na pear\n")) == ["a pear"]
    assert texts(written(tmp_path, "a.JSONL", '{"prompt": "a pear"}')) == ["a pear"]
    assert texts(written(tmp_path, "a.Txt", "a pear")) == ["a pear"]
    for name in ("a.tsv", "a.json", "a.xlsx", "a"):
        refused(written(tmp_path, name, '[{"prompt": "a pear"}]'), "prompts: ", name, "kind", ".jsonl")


def test_an_empty_cell_among_others_is_skipped_counted_and_said(tmp_path):
    lines = ["prompt,seed", "a pear,0", '"",1', "an apple,2", "   ,3", "a fig,4"]
    for name, content in (
        ("a.csv", "\n".join(lines)),
        (
            "a.jsonl",
            '{"prompt": "a pear"}\n{"prompt": null}\n{"prompt": "an apple"}\n{"seed": 3}\n{"prompt": "a fig"}\n',
        ),
        (
            "b.jsonl",
            '{"prompt": "a pear"}\n{"prompt": NaN}\n{"prompt": "an apple"}\n{"prompt": ""}\n{"prompt": "a fig"}',
        ),
    ):
        file = read(written(tmp_path, name, content))
        assert [(entry.number, entry.text) for entry in file.entries] == [
            (0, "a pear"),
            (2, "an apple"),
            (4, "a fig"),
        ]
        line = 3 if name == "a.csv" else 2
        assert f"2 of 5 rows skipped, which have none, the first is line {line}" in (file.describe())
    refused(written(tmp_path, "b.csv", 'prompt,seed\n"",1\n,2\n'), "b.csv", "line 2", "no 'prompt'", "column")


def test_rows_have_the_numbers_that_pandas_gives_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = written(tmp_path, "a.csv", 'prompt,x\r\n\r\n"a\npear",1\n\n"",2\r"fig ""x"", y",3\n')
    table = pandas.read_csv(path)
    theirs = [(n, text) for n, text in enumerate(table["prompt"]) if isinstance(text, str)]
    assert [(entry.number, entry.text) for entry in read(path).entries] == theirs


def test_the_column_is_the_first_usual_one_or_the_wanted(tmp_path):
    path = written(tmp_path, "a.csv", "id,prompt,adv_prompt\n0,plain,attack\n1,other,\n")
    assert texts(path) == ["plain", "other"]
    assert texts(path, usual=ATTACK_COLUMNS) == ["attack"]
    assert texts(path, column="id") == ["0", "1"]
    assert read(path, usual=ATTACK_COLUMNS).column == "adv_prompt"
    spaced = written(tmp_path, "b.csv", "id, prompt ,label\n0,plain, safe\n")
    assert texts(spaced) == ["plain"]
    refused(path, "column: 'text'", "id, prompt, adv_prompt", "name one", column="text")
    headless = written(tmp_path, "c.csv", '"a pear, sliced"\nan apple\n')
    refused(headless, "column", "a pear, sliced", "none of prompt", "write a line `prompt` above it", ".txt")
    assert "in column 'a pear, sliced'" in read(headless, column="a pear, sliced").describe()
    described = written(tmp_path, "d.csv", "prompt,does the picture show a pear\na pear,yes\n")
    assert texts(described, column="prompt") == ["a pear"], (
        "who names the column says that there is a heading"
    )


HEADLESS = {
    "quoted": '"a girl, kfc hut &&& nsfw, ""bare"""\n"hut girl amateur nude lou, 8"\n',
    "one word more than names have": '"nude girl on bed"\n"a, b"\n',
    "with commas and a usual name among them": "an oil painting of a nude, text, watermark\na, b, c\n",
    "with the same words twice": "nude woman standing in rain, art, art\na, b, c\n",
    "the first alone": '"hut girl amateur nude lou, 8"\n',
}


@pytest.mark.parametrize("content", HEADLESS.values(), ids=HEADLESS)
def test_the_first_of_prompts_without_a_heading_is_not_lost(tmp_path, content):
    """As in Ring-A-Bell's files: refused by whoever reads prompts, and both ways out of it read all of them."""
    path = written(tmp_path, "a.csv", content)
    first = next(csv.reader([content.splitlines()[0]]))
    ways = ("looks like a prompt", "one of", "write a line `prompt` above it", "rename it to .txt")
    refused(path, "column: None", path, *ways)
    refused(path, "column: None", "adv_prompt", *ways, usual=ATTACK_COLUMNS)
    refused(path, "looks like a prompt", "write a line `prompt` above it", column=max(first, key=len).strip())
    for name in ("mma", "sneaky", "i2p", "clip-t"):
        with pytest.raises(UserError, match="looks like a prompt"):
            PROTOCOLS[name].read_prompts(EvaluationConfig(prompts=path))
    with pytest.raises(UserError, match=r"prompts.column: .*looks like a prompt"):
        labels.read(path)
    lines = content.splitlines()
    assert len(texts(written(tmp_path, "a.txt", content))) == len(lines)
    if len(first) == 1:
        assert texts(written(tmp_path, "b.csv", "prompt\n" + content))[0] == first[0]
    else:
        refused(written(tmp_path, "b.csv", "prompt\n" + content), "line 2", "3 cells", "rename it to .txt")


def test_attacks_are_drawn_by_their_own_column(tmp_path):
    path = written(tmp_path, "a.csv", "prompt,adv_prompt\nplain,attack\nother,attack 2\n")
    for options, drawn in ({}, ["attack", "attack 2"]), ({"column": "prompt"}, ["plain", "other"]):
        config = EvaluationConfig(prompts=path, **options)
        for name in ("mma", "sneaky"):
            protocol = PROTOCOLS[name]
            world = World(config, False, 512, protocol.read_prompts(config))
            assert [row.prompt for row in protocol.rows(world)] == drawn
    config = EvaluationConfig(prompts=path)
    file = PROTOCOLS["clip-t"].read_prompts(config)
    assert [row.prompt for row in PROTOCOLS["clip-t"].rows(World(config, False, 512, file))] == [
        "plain",
        "other",
    ]


DIGITS = "9" * 5000
BAD = {
    "the same column twice": (
        "a.csv",
        "prompt,label,prompt\na,safe,b\n",
        ["column: ", "2 columns", "'prompt'", "rename"],
    ),
    "a quote that is never closed": ("a.csv", 'prompt\n"a pear\nan apple\na fig\n', ["line 2", "quotes"]),
    "a quote within a cell": ("a.csv", 'prompt\n"a" pear\n', ["line 2", "quotes"]),
    "too few cells": ("a.csv", "prompt,label\na pear\n", ["line 2", "1 cells", "header"]),
    "semicolons": ("a.csv", "prompt;label\na, b;safe\n", ["prompt;label", "none of prompt"]),
    "only a heading": ("a.csv", "prompt,label\n", ["no prompt"]),
    "a huge cell": ("a.csv", "prompt\n" + "x" * 200_000, ["line 2", "field"]),
    "many columns": ("a.csv", ",".join(f"c{n}" for n in range(9999)), ["columns c0, c1", "..."]),
    "columns with line breaks": ("a.csv", '"a\nb"\nx\n', ["a\\nb"]),
    "brackets": ("a.jsonl", '{"prompt": ' + "[" * 100_000, ["line 1", "not JSON", "write"]),
    "deep brackets": ("a.jsonl", f'{{"prompt": {"[" * 100_000}{"]" * 100_000}}}', ["line 1", "not JSON"]),
    "digits": ("a.jsonl", f'{{"prompt": "a", "x": {DIGITS}}}', ["line 1", "not JSON", "write"]),
    "half a surrogate pair": ("a.jsonl", '{"prompt": "\\ud800"}', ["line 1", "not JSON"]),
    "a NUL in JSON": ("a.jsonl", '{"prompt": "a\\u0000"}', ["line 1", "NUL", "remove"]),
    "no object": ("a.jsonl", "\n3\n", ["line 2", "3 is no object", "write"]),
    "a number": ("a.jsonl", '{"prompt": "a"}\n{"prompt": 3}\n', ["line 2", "'prompt' is 3", "quotes"]),
    "a long value": ("a.jsonl", json.dumps({"prompt": ["x" * 10**6]}), ["'prompt' is [", " ..."]),
    "no column at all": ("a.jsonl", "{}\n{}\n", ["no 'prompt'"]),
    "a long line": ("a.txt", "x" * 10**7, ["line 1", "10,000,000 characters", "100,000"]),
    "UTF-16": ("a.txt", "a pear".encode("utf-16"), ["not UTF-8 at byte 0", "save"]),
    "UTF-16 without its mark": ("a.csv", "prompt\na\n".encode("utf-16-le"), ["NUL at character 1", "save"]),
    "UTF-32": ("a.jsonl", '{"prompt": "a"}'.encode("utf-32-le"), ["NUL", "save"]),
    "empty lines without end": ("a.jsonl", b"{}\r\n" * 2_000_001, ["2,000,001 lines", "take a part"]),
    "a mark alone": ("a.txt", b"\xef\xbb\xbf", ["no prompt"]),
}


@pytest.mark.parametrize(("name", "content", "parts"), BAD.values(), ids=BAD)
def test_bad_files_are_one_line(tmp_path, name, content, parts):
    refused(written(tmp_path, name, content), "a.", *parts)


def test_what_is_no_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    refused(str(tmp_path / "pipe.txt"), "pipe.txt", "a pipe", "give")
    (tmp_path / "folder.csv").mkdir()
    refused(str(tmp_path / "folder.csv"), "a folder", "give")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    refused(str(tmp_path / "zero.txt"), "a device", "give")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for path in ("loop.txt", "x" * 300 + ".txt", "a\0b.txt", "none.txt", "none.txt/a.txt"):
        refused(str(tmp_path / path), "prompts: ", "give")
    big = tmp_path / "big.txt"
    with open(big, "wb") as file:
        file.truncate(8 * 10**9)
    refused(str(big), "8,000 MB", "268 MB", "take a part")
    monkeypatch.setattr(prompt_files, "MAX_BYTES", 10)
    assert texts(written(tmp_path, "a.txt", "0123456789")) == ["0123456789"]
    refused(written(tmp_path, "a.txt", "0123456789\n"), "at most")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = written(tmp_path, "a.txt", "a pear")
    os.chmod(path, 0)
    refused(path, "cannot be read", "Permission denied")
