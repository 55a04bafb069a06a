"""JSON from anywhere becomes plain data or one line of error."""

import os
from pathlib import Path

import pytest

from sdr1.base.errors import UserError
from sdr1.base.plain_data import parse_json, read_json

HOSTILE = {
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "digits": b"9" * 5000,
    "half a pair": rb'"\ud800"',
    "bytes": b"\xff\xfe\x00",
    "cut": b'{"a": [1, 2',
    "empty": b"",
    "NUL": b"\x00",
    "two": b"{} {}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_json_that_cannot_be_read_is_one_line_that_names_its_place(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    for read in (lambda: parse_json(content, f"--out: {path}"), lambda: read_json(path, "--out")):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value).startswith(f"--out: {path}: not JSON")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_plain_json_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for start in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(start + '{"ä": [1, 2.5, true, null, 1180591620717411303424]}'.encode())
        assert read_json(path) == {"ä": [1, 2.5, True, None, 2**70]}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json", "missing.json"):
        with pytest.raises(UserError, match="no such file"):
            read_json(tmp_path / name)
