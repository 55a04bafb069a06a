"""An evaluation's directory: what is in it after a kill at any moment is either whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdr1.errors import UserError
from sdr1.evaluation.rows import Row, Sampler
from sdr1.files import refuse_foreign, remove_partial, write_bytes, write_text
from sdr1.plain_data import read_json

REQUEST = "request.json"
"""The file by which sdr1 knows an evaluation's folder."""
Records = dict[str, dict[str, Any]]
"""A judge's record of every image, by row id."""


class Folder:
    """Images, manifest, records and result of one evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, request: dict[str, Any]) -> None:
        """Start, or go on with the evaluation that `request` describes.

        Raises:
            UserError: the folder holds another one.
        """
        asked = json.loads(json.dumps(request))
        file = self.path / REQUEST
        refuse_foreign(self.path, REQUEST, "evaluation", "--out")
        if file.is_file():
            found = read_json(file, "--out")
            if not isinstance(found, dict):
                raise UserError(f"--out: {file}: no request of sdr1; choose another folder")
            differing = [key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key)]
            if differing:
                raise UserError(
                    f"--out: {self.path}: holds an evaluation with another {', '.join(sorted(differing))}; choose "
                    "another folder, or remove it"
                )
        else:
            write_text(file, _pretty(asked))
        remove_partial(self.path)

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
        return self.path / "parts" / judge / f"{batch:06d}.json"

    def keep_part(self, judge: str, batch: int, records: list[dict[str, Any]]) -> None:
        write_text(self.part(judge, batch), json.dumps(records))

    def finish_judge(
        self, judge: str, parts: str, rows: Sequence[Row], batches: Sequence[Sequence[Row]]
    ) -> None:
        """Join a judge's parts to `records-<judge>.jsonl`, a line a row, in the order of the rows; the manifest is
        there."""
        files = {line["row"]: line["file"] for line in _lines(self.path / "manifest.jsonl")}
        found: Records = {}
        for index, batch in enumerate(batches):
            records = json.loads(self.part(parts, index).read_text(encoding="utf-8"))
            found |= {row.id: record for row, record in zip(batch, records, strict=True)}
        lines = [
            json.dumps({"row": row.id, "file": files[row.id], "prompt": row.prompt, **found[row.id]})
            for row in rows
        ]
        write_text(self.path / f"records-{judge}.jsonl", "".join(f"{line}\n" for line in lines))

    def records(self, judge: str) -> Records:
        with open(self.path / f"records-{judge}.jsonl", encoding="utf-8") as file:
            return {record["row"]: record for record in map(json.loads, file)}

    def has_records(self, judge: str) -> bool:
        return (self.path / f"records-{judge}.jsonl").is_file()

    def write_manifest(self, rows: Sequence[Row], files: dict[str, Path] | None = None) -> None:
        """`manifest.jsonl`; `files` names images that lie elsewhere."""
        lines = []
        for row in rows:
            path = self.image(row) if files is None else files[row.id]
            name = path.relative_to(self.path) if path.is_relative_to(self.path) else path
            lines.append(
                json.dumps(
                    {
                        "row": row.id,
                        "prompt": row.prompt,
                        "seed": row.seed,
                        "sampler": row.sampler.scheduler,
                        "steps": row.sampler.steps,
                        "guidance": row.sampler.guidance_scale,
                        "eta": row.sampler.eta,
                        "size": [row.width, row.height],
                        "file": str(name),
                        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                        "facts": row.facts,
                    }
                )
            )
        write_text(self.path / "manifest.jsonl", "".join(f"{line}\n" for line in lines))

    def rows(self) -> list[Row] | None:
        """The rows of the manifest; None without one that sdr1 wrote.

        Raises:
            UserError: a line of it is broken.
        """
        path = self.path / "manifest.jsonl"
        if not path.is_file():
            return None
        try:
            lines = _lines(path)
            if not all("facts" in line for line in lines) or not lines:
                return None
            return [
                Row(
                    line["row"],
                    line["prompt"],
                    line["seed"],
                    Sampler(line["sampler"], line["steps"], line["guidance"], line["eta"]),
                    line["size"][0],
                    line["size"][1],
                    line["facts"],
                )
                for line in lines
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--images: {path}: not a manifest of sdr1: {error!r}") from error

    def has_manifest(self) -> bool:
        return (self.path / "manifest.jsonl").is_file()

    def marks(self) -> dict[str, str]:
        """What `write_marks` wrote last, empty without."""
        file = self.path / "judges.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def write_marks(self, marks: dict[str, str]) -> None:
        """By judge, the mark of the settings and weights that its records are of."""
        write_text(self.path / "judges.json", json.dumps(marks, indent=2, sort_keys=True) + "\n")

    def result(self) -> dict[str, Any] | None:
        """What `write_result` wrote; None if the evaluation was not finished."""
        file = self.path / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_result(self, result: dict[str, Any]) -> None:
        write_text(self.path / "result.json", _pretty(result))
        shutil.rmtree(self.path / "parts", ignore_errors=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
