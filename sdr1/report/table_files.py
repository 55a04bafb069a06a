"""A table as a file: CSV with every number in full, LaTeX with what the page shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from sdr1.report.tables import Table


def to_csv(table: Table) -> str:
    """Every number in full and in the unit of `result.json`; bounds and n in columns of their own."""
    parts = []
    for n, column in enumerate(table.columns):
        given = [cell.figure for row in table.rows if (cell := row.cells[n])]
        parts += [
            (n, part, column.key if part == "value" else f"{column.key} {part}")
            for part in ("value", "low", "high", "n", "p")
            if part == "value" or any(getattr(figure, part) is not None for figure in given)
        ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([table.corner, "origin", "source", *(heading for _, _, heading in parts)])
    for row in table.rows:
        values = [getattr(cell.figure, part) if (cell := row.cells[n]) else None for n, part, _ in parts]
        writer.writerow([row.key, "published" if row.published else "measured", row.source, *values])
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A tabular environment with what the page shows; it needs the package booktabs."""
    lines = [
        f"% {_tex(table.title)}; \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        "\\toprule",
        _tex_row([table.corner, *(column.heading for column in table.columns)]),
        "\\midrule",
    ]
    for before, row in zip([None, *table.rows], table.rows, strict=False):
        if row.published and (before is None or not before.published):
            if before is not None:
                lines.append("\\midrule")
            lines.append(f"\\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\\emph{{published}}}} \\\\")
        shown = [
            "--" if cell is None else f"{cell.text} [{', '.join(cell.notes)}]" if cell.notes else cell.text
            for cell in row.cells
        ]
        lines.append(_tex_row([row.label, *shown]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_TEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _tex_row(cells: Sequence[str]) -> str:
    # A row that starts with a bracket would be taken for the option of the line break before it.
    return "{}" + " & ".join(map(_tex, cells)) + " \\\\"


def _tex(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()) if letter.isprintable())
