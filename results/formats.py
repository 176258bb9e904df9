"""A table as text, Markdown, CSV, LaTeX or JSON. The first, second and fourth round to two decimals, as papers do."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import asdict

from dassl.output import clean, csv_cell, json_text
from results.statistics import Summary
from results.tables import Difference, Probability, Table, Value

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def cell(value: Value) -> str:
    """A value as people read it: `77.70 ± 1.20 (2.98)`, `77.70`, `+0.31`, `0.0123`, or `-` for nothing."""
    if value is None:
        return "-"
    if isinstance(value, Summary):
        if value.sd is None:
            return f"{value.mean:.2f}"
        return f"{value.mean:.2f} ± {value.sd:.2f} ({value.ci95:.2f})"
    if isinstance(value, Probability):
        return f"{value:.3g}"
    if isinstance(value, float):
        return f"{value:+.2f}" if isinstance(value, Difference) else f"{value:.2f}"
    return clean(str(value))


def _notes(table: Table) -> list[str]:
    """The title and the notes, each on one line."""
    return [clean(text) for text in (table.title, *table.notes)]


def _grid(table: Table) -> list[list[str]]:
    """All cells as strings, the column names first."""
    return [[clean(name) for name in table.columns], *([cell(value) for value in row] for row in table.rows)]


def _is_text(table: Table, column: int) -> bool:
    return any(isinstance(row[column], str) for row in table.rows)


def to_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    grid = _grid(table)
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    left = [_is_text(table, i) for i in range(len(widths))]
    lines = [
        "  ".join(
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in grid
    ]
    rule = "-" * max(len(line) for line in lines)
    title, *notes = _notes(table)
    notes = [f"* {note}" for note in notes]
    return "\n".join([title, "", lines[0], rule, *lines[1:], rule, *notes]) + "\n"


def to_markdown(table: Table) -> str:
    """A GitHub table with the notes as a list below."""
    rows = [[_markdown(text).replace("|", "\\|") for text in row] for row in _grid(table)]
    rule = ["---" if _is_text(table, i) else "--:" for i in range(len(table.columns))]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])]
    title, *notes = map(_markdown, _notes(table))
    return "\n".join([f"**{title}**", "", *lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _markdown(text: str) -> str:
    """Text without links, pictures and HTML of its own."""
    return re.sub(r"[\\`<\[]", r"\\\g<0>", text)


def to_csv(table: Table) -> str:
    """Unrounded; a column of summaries becomes three: the mean, `_sd` and `_ci95`. Without the notes."""
    spread = [any(isinstance(row[i], Summary) for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [[c, f"{c}_sd", f"{c}_ci95"] if wide else [c] for c, wide in zip(table.columns, spread, strict=True)]
    writer.writerow([csv_cell(name) for names in header for name in names])
    for row in table.rows:
        fields = [_csv_fields(value) if wide else [value] for value, wide in zip(row, spread, strict=True)]
        writer.writerow([csv_cell(field) for part in fields for field in part])
    return out.getvalue()


def _csv_fields(value: Value) -> list[Value]:
    """Mean, standard deviation and interval."""
    return [value.mean, value.sd, value.ci95] if isinstance(value, Summary) else [value, None, None]


def to_latex(table: Table) -> str:
    """A `tabular` for the booktabs package; standard deviations small, intervals and notes in comments."""
    grid = [[_latex(text) for text in row] for row in _grid(table)]
    for shown, row in zip(grid[1:], table.rows, strict=True):
        for i, value in enumerate(row):
            if isinstance(value, Summary) and value.sd is not None:
                shown[i] = f"${value.mean:.2f}_{{\\pm {value.sd:.2f}}}$"
    kinds = "".join("l" if _is_text(table, i) else "r" for i in range(len(table.columns)))
    lines = [f"{' & '.join(row)} \\\\" for row in grid]
    notes = [f"% {note}" for note in _notes(table)]
    body = [f"\\begin{{tabular}}{{{kinds}}}", "\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule"]
    return "\n".join([*notes, *body, "\\end{tabular}"]) + "\n"


def _latex(text: str) -> str:
    escaped = "".join(LATEX_SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)


def to_json(table: Table) -> str:
    """Unrounded: `{"title", "columns", "rows": [{column: value}], "notes"}`; a summary is {mean, sd, ci95, n}."""
    rows = [
        {
            name: asdict(value) if isinstance(value, Summary) else value
            for name, value in zip(table.columns, row, strict=True)
        }
        for row in table.rows
    ]
    content = {"title": table.title, "columns": table.columns, "rows": rows, "notes": table.notes}
    return json_text(content)


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "json": to_json,
}
