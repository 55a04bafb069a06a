"""The comparison's section as Markdown, for a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping

from sdr1.report.sections import PageSection
from sdr1.report.tables import Table, TableCell

_ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


def text(section: PageSection, pictures: Mapping[str, str]) -> str:
    """Its intro, every table with a measured row, pictures beside the file with what they show, and its notes."""
    parts = [f"# {section.title}", section.intro]
    for table in section.tables:
        if table.measured:
            parts += [f"## {table.title}", _table(table)]
    parts += [f"## {told}\n\n![{told}]({name})" for name, told in pictures.items()]
    parts += ["## Notes", "\n".join(f"- {note}" for note in section.notes)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    headings = [f"{column.heading}{_ARROWS[column.better]}" for column in table.columns]
    lines = [[table.corner, *headings], ["---", *("---:" for _ in headings)]]
    for row in table.rows:
        label = f"{row.label} (published)" if row.published else row.label
        lines.append(
            [label if row.published or not row.source else f"{label} ({row.source})", *map(_cell, row.cells)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: TableCell | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.text} ({', '.join(cell.notes)})" if cell.notes else cell.text
