"""The one reader of prompts, for training and evaluation: txt, csv and jsonl files, and hub datasets."""

from __future__ import annotations

import csv
import io
import stat
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdr1.base.errors import UserError, reason
from sdr1.base.extras import require
from sdr1.base.plain_data import parse_json, shown

HUB = "hub:"
TEXT_COLUMNS = ("prompt", "text", "caption", "adv_prompt", "adversarial_prompt", "sensitive prompt")
"""Names that a column of prompts has where nobody says which it is; the first that is there is taken."""
ATTACK_COLUMNS = tuple(dict.fromkeys(("adv_prompt", "adversarial_prompt", *TEXT_COLUMNS)))
"""The same for files that list attacks, whose `prompt` is what the attack was made from."""
MAX_BYTES, MAX_LINES = 2**28, 2_000_000
"""Of a file, which is read whole: every line of it takes about a kilobyte of memory."""
LONGEST = 100_000
"""Characters of a prompt; a text encoder reads a few hundred."""
_SUFFIXES = (".txt", ".csv", ".jsonl")
_LONGEST_NAME = 3
"""Words of a csv column's name; what has more is taken for a prompt in a file without a heading."""
_HEADLESS = "write a line `prompt` above it, or where prompts are not in quotes, rename it to .txt"


@dataclass(frozen=True)
class Entry:
    """A row that has a prompt."""

    number: int
    """Of the row in its file, from 0. Rows without a prompt count, blank lines do not, as for pandas."""
    text: str
    cells: Mapping[str, Any]
    where: str
    """Field, file and line, for error lines."""


@dataclass(frozen=True)
class PromptFile:
    """What a file, or a hub dataset, holds: at least one entry."""

    field: str
    """The setting that named it."""
    path: str
    column: str
    """That the prompts are from."""
    columns: tuple[str, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...]
    """Where the rows stand that have no prompt."""

    def describe(self) -> str:
        """One line: how many prompts, of which column, and how many rows were skipped."""
        skipped = ""
        if self.skipped:
            first = self.skipped[0].removeprefix(f"{self.field}: {self.path!r} ")
            rows = len(self.entries) + len(self.skipped)
            skipped = (
                f"; {len(self.skipped):,} of {rows:,} rows skipped, which have none, the first is {first}"
            )
        is_clear = len(self.columns) <= 1 and self.column in ATTACK_COLUMNS
        column = "" if is_clear else f" in column {self.column!r}"
        return f"{self.field}: {self.path!r}: {len(self.entries):,} prompts{column}{skipped}"


def read(
    path: str,
    field: str = "prompts",
    column_field: str = "column",
    column: str | None = None,
    usual: Sequence[str] = TEXT_COLUMNS,
) -> PromptFile:
    """The prompts of a file or of `hub:DATASET[:SPLIT]`, from `column` or the first of `usual` that it has.

    A file's kind is its suffix: .txt has a prompt a line, .csv a heading, .jsonl an object a line. Lines end at \\n,
    \\r\\n or \\r and at nothing else.

    Raises:
        UserError: it is missing, too large, not UTF-8 or empty, its kind is unknown, or a line or a column is wrong.
    """
    place = f"{field}: {path!r}"
    columns, rows = _hub(path, place) if path.startswith(HUB) else _file(Path(path), place)
    chosen = _choose(column_field, column, usual, columns, path)
    entries, skipped = [], []
    for number, (where, cells) in enumerate(rows):
        value = cells.get(chosen)
        if is_empty(value):
            skipped.append(where)
        else:
            entries.append(Entry(number, _text(value, chosen, where), cells, where))
    if skipped and not entries:
        raise UserError(
            f"{skipped[0]}: no {chosen!r}, nor in any other row of {path!r}; write prompts there, or name the column "
            f"that holds them in {column_field}"
        )
    if not entries:
        raise UserError(f"{place}: the file holds no prompt; write one a line")
    return PromptFile(field, path, chosen, tuple(columns), tuple(entries), tuple(skipped))


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: no text but spaces, JSON's null, or the NaN that pandas writes for it."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def choose_column(
    field: str, wanted: str | None, usual: Sequence[str], columns: Sequence[str], path: str
) -> str | None:
    """The wanted column, or the first of the usual ones that is there.

    Raises:
        UserError: the wanted one is not there.
    """
    if wanted is not None and wanted not in columns:
        raise UserError(f"{field}: {shown(wanted)}: {path!r} has {_named(columns)}; name one of them")
    return wanted or next((name for name in usual if name in columns), None)


_Table = tuple[Sequence[str], Iterable[tuple[str, Mapping[str, Any]]]]
"""Names of the columns, and the rows: where each stands and its cells by column."""


def _choose(field: str, wanted: str | None, usual: Sequence[str], columns: Sequence[str], path: str) -> str:
    if not columns:
        return usual[0]
    if is_csv := Path(path).suffix.lower() == ".csv" and not path.startswith(HUB):
        _check_heading(field, wanted, usual, columns, path)
    found = choose_column(field, wanted, usual, columns, path)
    if found is None:
        first = f", or if its first line is a prompt already, {_HEADLESS}" if is_csv else ""
        raise UserError(
            f"{field}: None: {path!r} has {_named(columns)} and none of {', '.join(usual)}; name the one that holds "
            f"the prompts, or call it `prompt`{first}"
        )
    return found


def _check_heading(
    field: str, wanted: str | None, usual: Sequence[str], columns: Sequence[str], path: str
) -> None:
    """Raise UserError if a csv's first line is a prompt, which would be lost, or names two columns alike.

    Who names a column, and not by a prompt, says that the line is a heading.
    """
    long = [name for name in columns if len(name.split()) > _LONGEST_NAME]
    if long and (wanted is None or wanted in long or wanted not in columns):
        raise UserError(
            f"{field}: {shown(wanted)}: {path!r}: its first line looks like a prompt ({shown(long[0])}), not like a "
            f"heading with one of {', '.join(usual)}; {_HEADLESS}, or if it is a heading, name its column of prompts, in "
            f"at most {_LONGEST_NAME} words"
        )
    for name, count in Counter(filter(None, columns)).items():
        if count > 1:
            raise UserError(
                f"{field}: {path!r}: {count} columns are called {shown(name)}; rename all but one"
            )


def _named(columns: Sequence[str]) -> str:
    names = ", ".join(repr(name)[1:-1] or "''" for name in columns[:101])
    return f"the columns {textwrap.shorten(names, 300, placeholder=' ...')}"


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is {shown(value)}; write the prompt as a text, in quotes")
    text = value.strip()
    if len(text) > LONGEST:
        raise UserError(
            f"{where}: a prompt of {len(text):,} characters; at most {LONGEST:,} are read: check the file's line ends "
            "and quotes"
        )
    if "\0" in text:
        raise UserError(f"{where}: a NUL in the prompt; remove it")
    return text


def _file(file: Path, place: str) -> _Table:
    text = _decoded(_content(file, place), place)
    kind = file.suffix.lower()
    if kind == ".csv":
        return _csv(text, place)
    # Not str.splitlines, which also ends a line at a form feed, U+0085 or U+2028.
    lines = [
        (f"{place} line {number}", line)
        for number, line in enumerate(io.StringIO(text, newline=None), 1)
        if line.strip()
    ]
    if kind == ".txt":
        return ["prompt"] * bool(lines), ((where, {"prompt": line}) for where, line in lines)
    objects = [(where, _object(line, where)) for where, line in lines]
    return list(dict.fromkeys(name for _, cells in objects for name in cells)), objects


def _content(file: Path, place: str) -> bytes:
    try:
        # Before it is opened: opening a pipe would wait for its writer.
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{place}: a folder, a pipe or a device; give a .txt, .csv or .jsonl file")
        if file.suffix.lower() not in _SUFFIXES:
            raise UserError(f"{place}: unknown kind {file.suffix!r}; save it as .txt, .csv or .jsonl")
        content = b""
        if facts.st_size <= MAX_BYTES:
            with open(file, "rb") as opened:
                content = opened.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{place}: no such file; give `sandbox`, a .txt, .csv or .jsonl file or hub:DATASET"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{place}: cannot be read ({why}); give a file that can") from error
    if max(facts.st_size, len(content)) > MAX_BYTES:
        raise UserError(
            f"{place}: a file of {max(facts.st_size, len(content)) / 1e6:,.0f} MB; at most {MAX_BYTES / 1e6:,.0f} MB "
            "are read: take a part of it"
        )
    return content


def _decoded(content: bytes, place: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    # Latin letters in UTF-16 or UTF-32 are also valid UTF-8.
    if "\0" in text:
        raise UserError(f"{place}: a NUL at character {text.index(chr(0))}; save it as UTF-8")
    lines = max(text.count("\n"), text.count("\r"))
    if lines > MAX_LINES:
        raise UserError(f"{place}: {lines:,} lines; at most {MAX_LINES:,} are read: take a part of it")
    return text


def _csv(text: str, place: str) -> _Table:
    # Strict: a quote that is never closed would make one prompt of all that follows.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines = _csv_lines(reader, place)
    _, heading = next(lines, ("", []))
    names = [name.strip() for name in heading]

    unquoted = (
        ", or take the header away and rename it to .txt, of one prompt a line" if len(names) == 1 else ""
    )

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        for where, cells in lines:
            if len(cells) != len(names):
                raise UserError(
                    f"{where}: {len(cells)} cells, not as many as the {len(names)} cells of the header; put texts with "
                    f"commas in quotes{unquoted}"
                )
            yield where, dict(zip(names, cells))

    return names, rows()


def _csv_lines(reader: Any, place: str) -> Iterator[tuple[str, list[str]]]:
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{place} line {first}: not csv ({error}); put the cell in quotes, and double those in it"
            ) from error
        if cells is None:
            return
        if cells:
            yield f"{place} line {first}", cells


def _object(line: str, where: str) -> dict[str, Any]:
    fix = 'write {"text": "...", "label": "safe"}'
    try:
        found = parse_json(line, where)
    except UserError as error:
        raise UserError(f"{error}; {fix}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {shown(found)} is no object; {fix}")
    return found


def _hub(path: str, place: str) -> _Table:
    name, _, split = path.removeprefix(HUB).partition(":")
    require("datasets", place)
    from datasets import load_dataset

    try:
        found = load_dataset(name, split=split or "train")
        return list(found.column_names), [(f"{place} row {n}", cells) for n, cells in enumerate(found)]
    # Whatever is wrong with what somebody else keeps there.
    except Exception as error:
        raise UserError(
            f"{place}: cannot be loaded: {reason(error)}; check the name and the split, or give a file"
        ) from error
