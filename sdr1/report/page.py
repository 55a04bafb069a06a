"""Writing the report: one page that loads nothing, and its tables and plots as files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sdr1 import __version__
from sdr1.base.files import refuse_foreign, write_bytes, write_text
from sdr1.base.plain_data import flatten
from sdr1.report.data import Material, read
from sdr1.report.sections import PageSection, sections
from sdr1.report.table_files import to_csv, to_latex
from sdr1.training.observers.tracking.outcome import attach, measured

MARKER = "report.json"
"""The file by which sdr1 knows a report's folder."""


def write(sources: Sequence[str], out: Path) -> Path:
    """Write `index.html`, `tables/*.csv|tex` and `figures/*.svg|png` into `out`, and return the page's path.

    They are artifacts of the MLflow run of every run that was named or whose `model/` was evaluated; it gets the figures of
    these evaluations too.

    Raises:
        UserError: what `read` raises; nothing is written then.
    """
    material = read(sources)
    refuse_foreign(out, MARKER, "report", "--out")
    contents = files(material, sections(material))
    claim(out, sources)
    for name, content in contents.items():
        write_bytes(out / name, content)
    for each in material.evaluations:
        measured(each.result.model, each.name, each.result)
    for run in material.tracked:
        attach(run, [out / name for name in contents], out.parent)
    return out / "index.html"


def files(material: Material, parts: Sequence[PageSection]) -> dict[str, bytes]:
    """The page, and its tables and plots, by their paths beside each other."""
    contents = {"index.html": render(material, parts).encode()}
    for part in parts:
        for table in part.tables:
            contents[f"tables/{table.name}.csv"] = to_csv(table).encode()
            contents[f"tables/{table.name}.tex"] = to_latex(table).encode()
        for plot in part.plots:
            contents[f"figures/{plot.name}.svg"] = plot.svg.encode()
            contents[f"figures/{plot.name}.png"] = plot.png
    return contents


def claim(out: Path, sources: Sequence[str] = ()) -> None:
    """Make `out` a report's folder.

    Raises:
        UserError: it holds something else.
        OSError: it cannot be written.
    """
    refuse_foreign(out, MARKER, "report", "--out")
    write_text(out / MARKER, json.dumps({"sources": list(sources)}, indent=2) + "\n")


def render(material: Material, parts: Sequence[PageSection]) -> str:
    """The page. Every text in it is escaped; only the plots, drawn here, are markup."""
    environment = Environment(
        loader=PackageLoader("sdr1.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = lambda plot: Markup(plot.inline)
    environment.filters["csv"] = lambda table: _data(to_csv(table), "text/csv")
    environment.filters["latex"] = lambda table: _data(to_latex(table), "application/x-tex")
    return environment.get_template("page.html.j2").render(
        sections=parts,
        models=list(dict.fromkeys(each.label for each in material.evaluations)),
        provenance=[(each, _rows(each.result.provenance)) for each in material.evaluations],
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _rows(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in flatten(provenance).items():
        text = value if isinstance(value, str) else json.dumps(value)
        rows.append((key, text if len(text) <= 300 else f"{text[:300]} ..."))
    return rows


def _data(text: str, kind: str) -> str:
    """The text as an address, so that it can be saved from a page that travels alone."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
