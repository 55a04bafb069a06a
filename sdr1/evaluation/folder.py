"""An evaluation's directory: what is in it after a kill at any moment is either whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdr1.base.errors import UserError
from sdr1.base.files import file_sha256, refuse_foreign, remove_partial, write_bytes, write_text
from sdr1.base.plain_data import lines_as, read_as, read_bytes
from sdr1.evaluation.judges import kind
from sdr1.evaluation.result import Result
from sdr1.evaluation.rows import ManifestLine, Record, RecordLine, Row

T = TypeVar("T")
RESULT = "result.json"
SUITE = "suite.json"
REQUEST = "request.json"
"""The file by which sdr1 knows an evaluation's folder."""
Records = dict[str, Record]
"""A judge's record of every image, by row id."""


class Folder:
    """Images, manifest, records and result of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, request: dict[str, Any]) -> None:
        """That the evaluation which `request` describes can be started or gone on with here.

        Raises:
            UserError: the folder holds another one, or what sdr1 did not write.
        """
        refuse_foreign(self.path, REQUEST, "evaluation", "--out")
        file = self.path / REQUEST
        if not file.is_file():
            return
        asked, found = json.loads(json.dumps(request)), read_as(dict[str, Any], file, "--out")
        differing = [key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key)]
        if differing:
            raise UserError(
                f"--out: {self.path}: holds an evaluation with another {', '.join(sorted(differing))}; choose "
                "another folder, or remove it"
            )

    def open(self, request: dict[str, Any]) -> None:
        """Start, or go on with the evaluation that `request` describes; as `check`."""
        self.check(request)
        if not (self.path / REQUEST).is_file():
            write_text(self.path / REQUEST, _pretty(request))
        remove_partial(self.path)

    def is_evaluation(self) -> bool:
        """Whether an evaluation of sdr1 is here, or what somebody took from one: `manifest.jsonl` and the images."""
        if (self.path / REQUEST).is_file():
            return True
        return self.has_manifest() and b'"facts"' in read_bytes(self._manifest).partition(b"\n")[0]

    def image(self, row: Row) -> Path:
        """Where the image of a row is kept."""
        return self.path / "images" / f"{row.id}.png"

    def has_images(self, rows: Iterable[Row]) -> bool:
        return all(self.image(row).is_file() for row in rows)

    def keep_images(self, rows: Sequence[Row], pngs: Sequence[bytes]) -> None:
        for row, png in zip(rows, pngs, strict=True):
            write_bytes(self.image(row), png)

    def images(self, rows: Sequence[Row]) -> list[bytes]:
        return [self.image(row).read_bytes() for row in rows]

    def part(self, judge: str, batch: int) -> Path:
        """Where a judge's records of one batch wait until it has seen all of them."""
        return self.path / "parts" / _name(judge) / f"{batch:06d}.json"

    def keep_part(self, judge: str, batch: int, records: list[Record]) -> None:
        write_text(self.part(judge, batch), json.dumps(records))

    def finish_judge(
        self, judge: str, parts: str, rows: Sequence[Row], batches: Sequence[Sequence[Row]]
    ) -> None:
        """Join a judge's parts to `records-<judge>.jsonl`, a line a row, in the order of the rows; the manifest is
        there."""
        files = {line.row: line.file for line in self.manifest()}
        found: Records = {}
        for index, batch in enumerate(batches):
            part = self.part(parts, index)
            records = read_as(list[Record], part)
            if len(records) != len(batch):
                raise UserError(f"{part}: {len(records)} records of {len(batch)} images; remove the file")
            found |= {row.id: record for row, record in zip(batch, records, strict=True)}
        _write_lines(
            self._records(judge),
            [{"row": row.id, "file": files[row.id], "prompt": row.prompt, **found[row.id]} for row in rows],
        )

    def records(self, judge: str, rows: Sequence[Row], field: str = "--out") -> Records:
        """A judge's records of these rows; `field` is what the user named the folder by.

        Raises:
            UserError: they are missing, torn, or not those of all the rows.
        """
        path = self._records(judge)
        found: Records = {line["row"]: line for line in _lines(RecordLine, path, field)}
        says = kind(judge).says
        missing = [row.id for row in rows if not says <= found.get(row.id, {}).keys()]
        if missing:
            raise UserError(
                f"{field}: {path}: no record of row {missing[0]} with {', '.join(sorted(says))}, and of "
                f"{len(missing) - 1} more; remove the file, and `sdr1 evaluate` makes it again"
            )
        return found

    def _records(self, judge: str) -> Path:
        return self.path / f"records-{_name(judge)}.jsonl"

    def has_records(self, judge: str) -> bool:
        return self._records(judge).is_file()

    def write_manifest(self, rows: Sequence[Row], files: dict[str, Path] | None = None) -> None:
        """`manifest.jsonl`; `files` names images that lie elsewhere."""
        lines = []
        for row in rows:
            path = self.image(row) if files is None else files[row.id]
            name = path.relative_to(self.path) if path.is_relative_to(self.path) else path
            lines.append(ManifestLine.of(row, str(name), file_sha256(path)).asdict())
        _write_lines(self._manifest, lines)

    def manifest(self, field: str = "--out") -> list[ManifestLine]:
        """The lines of the manifest; `field` is what the user named the folder by.

        Raises:
            UserError: it is missing, or a line is torn.
        """
        return _lines(ManifestLine, self._manifest, field)

    def has_manifest(self) -> bool:
        return self._manifest.is_file()

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    def marks(self) -> dict[str, str]:
        """What `write_marks` wrote last, empty without."""
        file = self.path / "judges.json"
        return read_as(dict[str, str], file, "--out") if file.exists() else {}

    def write_marks(self, marks: dict[str, str]) -> None:
        """By judge, the mark of the settings and weights that its records are of."""
        write_text(self.path / "judges.json", json.dumps(marks, indent=2, sort_keys=True) + "\n")

    def write_result(self, result: Result) -> None:
        """`result.json`, of an evaluation that is finished."""
        write_text(self.path / RESULT, _pretty(result.model_dump(exclude_unset=True)))
        shutil.rmtree(self.path / "parts", ignore_errors=True)


def _name(judge: str) -> str:
    """A judge's name as part of a file's: some file systems have no colons."""
    return judge.replace(":", ".")


def _lines(kind: type[T], path: Path, field: str) -> list[T]:
    return lines_as(kind, read_bytes(path, field), f"{field}: {path}")


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
