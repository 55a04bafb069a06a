"""Rows of the protocols' own files: I2P in the forms that people have, GenEval rows that an image can fulfil."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.evaluation import run
from sdr1.evaluation.images import find
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import World
from sdr1.evaluation.rows import Row

I2P = [
    ("a thing, grim", "violence, shocking", 4261553411, 7, 512, 768),
    ("", "hate", 5, 7, 512, 512),
    ("odd", "hate", 0, 7.5, 1024, 512),
]
NAMES = ("prompt", "categories", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height")


def rows_of(protocol: str, path: Path | str, **settings: Any) -> list[Row]:
    config = EvaluationConfig(prompts=str(path), **settings)
    chosen = PROTOCOLS[protocol]
    return chosen.rows(World(config, False, 512, chosen.read_prompts(config)))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def test_i2p_without_case_numbers_is_numbered_by_its_rows(tmp_path):
    """As on Hugging Face: csv and jsonl, seeds and sizes under sd_*, one row without a prompt."""
    made = rows_of("i2p", table(tmp_path / "i2p.csv", NAMES, I2P))
    assert [
        (row.id, row.prompt, row.seed, row.sampler.guidance_scale, row.width, row.height) for row in made
    ] == [
        ("0", "a thing, grim", 4261553411, 7.0, 512, 768),
        ("2", "odd", 0, 7.5, 1024, 512),
    ]
    assert [row.facts["categories"] for row in made] == [["violence", "shocking"], ["hate"]]
    objects = [dict(zip(NAMES, row)) for row in I2P]
    objects[0]["categories"] = ["violence", "shocking"]
    objects[1]["prompt"] = None
    assert rows_of("i2p", jsonl(tmp_path / "i2p.jsonl", objects)) == made


def test_i2p_with_case_numbers_keeps_them(tmp_path):
    """As with ESD: evaluation_* beside sd_*, an unnamed column of pandas."""
    names = ("", *NAMES, "evaluation_seed", "evaluation_guidance", "case_number")
    path = table(tmp_path / "i2p.csv", names, [(n, *row, 10 + n, 3.0, 70 + n) for n, row in enumerate(I2P)])
    made = rows_of("i2p", path)
    assert [(row.id, row.seed, row.sampler.guidance_scale) for row in made] == [("70", 10, 3), ("72", 12, 3)]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sd_image_width", 0, "multiple of 8 from 8 to 4096"),
        ("sd_image_width", 10**12, "multiple of 8"),
        ("sd_image_height", 500, "multiple of 8"),
        ("sd_image_height", "", "multiple of 8"),
        ("sd_guidance_scale", "nan", "use a number from 0 on"),
        ("sd_guidance_scale", "inf", "use a number"),
        ("sd_guidance_scale", -1, "use a number"),
        ("sd_guidance_scale", True, "use a number"),
        ("sd_seed", -1, "whole number"),
        ("sd_seed", 1.5, "whole number"),
        ("sd_seed", "9" * 5000, "whole number"),
        ("sd_seed", True, "whole number"),
        ("sd_seed", None, "whole number"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_i2p_rows_that_cannot_be_drawn_are_refused(tmp_path, column, value, said, kind):
    rows = [dict(zip(NAMES, row)) for row in I2P]
    rows[2][column] = value
    if kind == "jsonl":
        path = jsonl(tmp_path / "i2p.jsonl", rows)
    else:
        path = table(tmp_path / "i2p.csv", NAMES, [tuple(row.values()) for row in rows])
    with pytest.raises(UserError) as caught:
        rows_of("i2p", path)
    place = "line 3" if kind == "jsonl" else "line 4"
    assert all(part in str(caught.value) for part in (place, column, said)), caught.value


def test_i2p_needs_its_columns_and_numbers_of_their_own(tmp_path):
    path = table(tmp_path / "i2p.csv", NAMES[:3], [row[:3] for row in I2P])
    with pytest.raises(
        UserError, match="no column evaluation_guidance or sd_guidance_scale and no .*another"
    ):
        rows_of("i2p", path)
    path = table(tmp_path / "i2p.csv", (*NAMES, "case_number"), [(*row, 7) for row in I2P])
    with pytest.raises(UserError, match="line 4: case_number 7 occurs twice"):
        rows_of("i2p", path)


def metadata(**changes: Any) -> dict[str, Any]:
    clause = {"class": "bench", "count": 1}
    return {"tag": "single_object", "include": [clause], "prompt": "a photo of a bench", **changes}


def clause(**changes: Any) -> list[dict[str, Any]]:
    return [{"class": "bench", "count": 1, **changes}]


def test_genevals_own_rows_pass(tmp_path):
    rows = [
        metadata(),
        metadata(tag="counting", include=clause(count=3), exclude=clause(count=4), prompt="three benches"),
        metadata(tag="colors", include=clause(color="red")),
        metadata(
            tag="position",
            include=[*clause(), {"class": "tv remote", "count": 1, "position": ["left of", 0]}],
        ),
    ]
    made = rows_of("geneval", jsonl(tmp_path / "a.jsonl", rows), images=1)
    assert [row.facts["metadata"] for row in made] == rows
    assert [row.id for row in made][1] == "00001/samples/00000"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"include": clause(count=-1)}, "count -1"),
        ({"include": clause(count=0)}, "count 0"),
        ({"include": clause(count=17)}, "from 1 to 16"),
        ({"include": clause(count=True)}, "count True"),
        ({"include": clause(count="1")}, "count '1'"),
        ({"include": clause(count=float("nan"))}, "count nan"),
        ({"include": []}, "include [] asks for nothing"),
        ({"include": None}, "include None"),
        ({"include": {}}, "include {}"),
        ({"include": ["bench"]}, "no object"),
        ({"include": clause(**{"class": "unicorn"})}, "class 'unicorn'"),
        ({"include": clause(**{"class": ["bench"]})}, "class ['bench']"),
        ({"include": clause(color="mauve")}, "color 'mauve'"),
        ({"include": clause(position=["left of", 0])}, "earlier clause"),
        ({"include": [*clause(), *clause(position=["beside", 0])]}, "left of or right of"),
        ({"include": [*clause(), *clause(position=["above", 1])]}, "earlier clause"),
        ({"include": [*clause(), *clause(position="above")]}, "earlier clause"),
        ({"exclude": clause(count=1)}, "as many are asked for"),
        ({"exclude": clause(count=-1)}, "count -1"),
        ({"exclude": 3}, "exclude 3"),
        ({"tag": None}, "tag None"),
        ({"tag": "overall"}, "mean over tags"),
    ],
)
def test_geneval_rows_that_can_never_be_right_are_refused(tmp_path, changes, said):
    path = jsonl(tmp_path / "a.jsonl", [metadata(), metadata(**changes)])
    with pytest.raises(UserError) as caught:
        rows_of("geneval", path)
    assert all(part in str(caught.value) for part in ("line 2", said, "evaluation_metadata.jsonl"))


def test_an_empty_cell_among_others_is_skipped_by_every_protocol_that_reads_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,label\na,safe\n"",safe\nb,unsafe\n')
    for protocol in ("clip-t", "fid", "mma", "sneaky", "steering"):
        assert [(row.id, row.prompt) for row in rows_of(protocol, path)] == [("00000", "a"), ("00002", "b")]
    assert len(rows_of("schedulers", path)) == 9 * 2


def test_steering_needs_both_labels(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,label\nb,unsafe\nb,unsafe\na,safe\nb,safe\n")
    assert [row.facts["label"] for row in rows_of("steering", path)] == ["unsafe", "unsafe", "safe", "safe"]
    with pytest.raises(UserError, match="none of 2 prompts is labelled safe"):
        rows_of("steering", path, limit=2)
    path.write_text("prompt\na\n")
    with pytest.raises(UserError, match="is labelled safe; .*column `label`"):
        rows_of("steering", path)


@pytest.mark.parametrize("name", ["{}.png", "{}_0.png", "images/{}_0.jpg"])
def test_judge_takes_i2ps_images_by_case_number_and_their_number(tmp_path, name):
    names = (*NAMES, "case_number")
    path = table(tmp_path / "i2p.csv", names, [(*row, 70 + n) for n, row in enumerate(I2P)])
    rows = rows_of("i2p", path)
    (tmp_path / "made" / "images").mkdir(parents=True)
    for number in (70, 71, 72):
        Image.new("RGB", (16, 16)).save(tmp_path / "made" / name.format(number))
    _, files = find(tmp_path / "made", rows)
    assert {id: file.name for id, file in files.items()} == {
        id: Path(name.format(id)).name for id in ("70", "72")
    }
    two = rows_of("i2p", path, images=2)
    for number in (70, 72):
        Image.new("RGB", (16, 16)).save(tmp_path / "made" / f"{number}_1.png")
        Image.new("RGB", (16, 16)).save(tmp_path / "made" / f"{number}-0.png")
    if name == "{}.png":
        assert {id: file.name for id, file in find(tmp_path / "made", two)[1].items()} == {
            "70-0": "70-0.png",
            "70-1": "70_1.png",
            "72-0": "72-0.png",
            "72-1": "72_1.png",
        }
        Image.new("RGB", (16, 16)).save(tmp_path / "made" / "70_0.png")
        with pytest.raises(UserError, match="are both row 70; leave one"):
            find(tmp_path / "made", rows)


def test_what_was_read_is_said_and_kept(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text('prompt,adv_prompt\nplain,a red circle\nother,""\n')
    (tmp_path / "made").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "made" / "00000.png")
    values = {"prompts": str(path), "judges": ["oracle"]}
    result = run.judge("mma", tmp_path / "made", tmp_path / "out", values, run.Place(local=True))
    assert result.provenance["prompts"] == {"file": str(path), "column": "adv_prompt", "skipped": 1}
    assert "1 prompts in column 'adv_prompt'; 1 of 2 rows skipped" in capsys.readouterr().out
    assert result.figures["attack_success_rate"].n == 1
