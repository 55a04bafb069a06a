"""The comparison as Markdown: what stands in it, in which order."""

from __future__ import annotations

from sdr1.evaluation.result import Figure
from sdr1.report.sections import PageSection
from sdr1.report.tables import Table, TableRow, percent, published
from sdr1.studies.compare import markdown


def test_measured_and_published_rows_pictures_and_notes() -> None:
    column = percent("utility", "utility", "higher")
    measured = TableRow(
        "r1", "r1", [column.cell(Figure(value=0.5, low=0.4, high=0.625, unit="share"))], "3 seeds"
    )
    absent = TableRow("uce", "uce", [None])
    paper = published("geneval", [percent("overall", "overall")])[0]
    tables = [
        Table("both", "Rates", "method", [column], [measured, absent, paper]),
        Table("theirs", "Published", "model", [column], [paper]),
    ]
    section = PageSection("compare", "Side by side", "What it is.", tables=tables, notes=["One.", "Two."])
    assert markdown.text(section, {"grid.png": "The same noise"}).splitlines() == [
        "# Side by side", "",
        "What it is.", "",
        "## Rates", "",
        "| method | utility, % ↑ |",
        "| --- | ---: |",
        "| r1 (3 seeds) | 50.0 (40.0 to 62.5) |",
        "| uce | – |",
        f"| {paper.label} (published) | {paper.cells[0].text} |", "",
        "## The same noise", "",
        "![The same noise](grid.png)", "",
        "## Notes", "",
        "- One.",
        "- Two.",
    ]  # fmt: skip
