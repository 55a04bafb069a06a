"""Damaged and odd prompt files: every reader either gives what can be drawn and trained on, or refuses in one line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sdr1.base.errors import UserError
from sdr1.config.evaluation import EvaluationConfig
from sdr1.config.prompts import PromptSource
from sdr1.evaluation.protocols import PROTOCOLS
from sdr1.evaluation.protocols.protocol import World
from sdr1.prompts.labels import read

I2P = (
    "prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,case_number,label\n"
    '"a thing, grim","violence, hate",4261553411,7,512,512,0,safe\n'
    "odd,hate,3,7.5,512,768,1,unsafe\n"
    '"",,9,2,64,64,2,safe\n'
)
GENEVAL = (
    '{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "cup", "count": 2, "color": "red", '
    '"position": ["left of", 0]}], "exclude": [{"class": "cup", "count": 3}], "prompt": "a bench", "label": "safe"}\n'
    '{"tag": "colors", "include": [{"class": "tv", "count": 1}], "prompt": "a tv", "text": "b", "label": "unsafe"}\n'
)
I2P_LINES = (
    '{"prompt": "a thing", "categories": ["hate"], "sd_seed": 4261553411, "sd_guidance_scale": 7.0, '
    '"sd_image_width": 512, "sd_image_height": 768, "label": "safe"}\n'
    '{"prompt": null, "categories": null, "sd_seed": 2, "sd_guidance_scale": 7, "sd_image_width": 64, '
    '"sd_image_height": 64}\n'
)
TEXT = "a red circle\n\n  a blue square  \r\na\u2028b\n"
# What readers trip over, more often than random bytes are.
ODD = (
    *(
        ",",
        '"',
        '""',
        "\n",
        "\r",
        "\0",
        "\x85",
        "\u2028",
        "\x1b",
        "\ufeff",
        ";",
        "\t",
        "{",
        "}",
        "[",
        "]",
        ":",
        "\\",
    ),
    *(
        "\\ud800",
        "\\u0000",
        "NaN",
        "nan",
        "inf",
        "-Infinity",
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "1.5",
        "9" * 4400,
    ),
    *(
        "[" * 3000,
        "prompt",
        "adv_prompt",
        "categories",
        "case_number",
        "label",
        '"prompt": 3,',
        '"include": [],',
        "\ud7ff",
    ),
)
odd = st.one_of(
    st.sampled_from(ODD).map(str.encode), st.binary(max_size=4), st.text(max_size=4).map(str.encode)
)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """Suffix and content of one of the whole files with up to three pieces replaced, repeated or cut off."""
    files = ((".csv", I2P), (".jsonl", GENEVAL), (".jsonl", I2P_LINES), (".txt", TEXT), (".CSV", ""))
    suffix, text = draw(st.sampled_from(files))
    content = text.encode()
    suffix = draw(st.sampled_from((suffix,) * 9 + (".csv", ".jsonl", ".txt", ".tsv", "")))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(odd, st.just(content[start:stop] * 2)))
        content = content[:start] + piece + content[stop:]
    encoding = draw(st.sampled_from(("utf-8",) * 9 + ("utf-16", "utf-8-sig", "utf-32-le")))
    return suffix, content if encoding == "utf-8" else content.decode("utf-8", "replace").encode(encoding)


def one_line(error: UserError, path: str) -> None:
    message = str(error)
    assert message.isprintable()
    assert len(message) < 1500
    assert path in message or message.startswith(("column", "prompts.column", "prompts.label_column"))


@settings(max_examples=400, deadline=None)
@given(
    damaged(),
    st.sampled_from((None, None, None, "prompt", "text", "label", "")),
    st.fixed_dictionaries(
        {},
        optional={
            "label_column": st.sampled_from(("label", "categories", "none")),
            "unsafe_categories": st.just(("hate",)),
        },
    ),
)
def test_readers_give_rows_that_can_be_used_or_one_line(made, column, labels):
    suffix, content = made
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, f"file{suffix}"))
        Path(path).write_bytes(content)
        try:
            prompts, file = read(PromptSource(path=path, column=column, **labels))
            assert file is not None
            assert file.describe().isprintable()
            for prompt in prompts:
                assert prompt.text.strip() == prompt.text != ""
                assert "\0" not in prompt.text
                assert prompt.text.encode().decode() == prompt.text
                assert prompt.label in (None, "safe", "unsafe")
        except UserError as error:
            one_line(error, path)
        for protocol in PROTOCOLS.values():
            config = EvaluationConfig(prompts=path, column=column, images=2)
            try:
                file = protocol.read_prompts(config)
                rows = protocol.rows(World(config, file is None, 512, file)) if file else []
            except UserError as error:
                one_line(error, path)
                continue
            assert len({row.id for row in rows}) == len(rows)
            for row in rows:
                assert row.prompt.strip() == row.prompt != ""
                assert 0 <= row.seed < 2**63
                assert 0 <= row.sampler.guidance_scale < float("inf")
                assert row.width % 8 == row.height % 8 == 0 < row.width <= 4096
                json.dumps(row.asdict(), ensure_ascii=False).encode()
