"""One HTML file about a tree of runs: tables, figures, failures, settings. Nothing is loaded from elsewhere."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dassl.output import clean
from results.contact_sheet import CSS as SHEET
from results.formats import cell
from results.plots import CAPTIONS
from results.records import Record
from results.settings import disagreements
from results.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 100rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #444; } th.text, td.text { text-align: left; } tr:hover td { background: #f6f6f2; }
ul { font-size: .85rem; color: #444; padding-left: 1.2rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; } figure { margin: 0; flex: 0 1 26rem; }
img { width: 100%; } figcaption { font-size: .82rem; color: #555; }
pre { background: #f6f6f2; padding: .8rem; overflow-x: auto; font-size: .8rem; } .bad { color: #a40000; }
"""


def page(
    title: str,
    tables: Sequence[Table],
    figures: "Mapping[str, Figure]",
    records: Sequence[Record],
    captions: Mapping[str, str] = CAPTIONS,
    sections: Sequence[str] = (),
) -> str:
    """The whole document; `sections` are parts of it in HTML."""
    problems = [record for record in records if record.problem]
    sound = len(records) - len(problems)
    made = datetime.now(UTC).isoformat(timespec="minutes")
    parts = [
        f"<h1>{_escape(title)}</h1>",
        f"<p>{sound} complete runs, {len(problems)} without a sound result. Written {made}.</p>",
        *(_table(table) for table in tables),
        _figures(figures, captions),
        *sections,
        _problems(problems),
        _settings(records),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_escape(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{CSS}{SHEET}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _escape(text: str, keep: str = "") -> str:
    """Text for HTML, clean; `keep` as in `clean`."""
    return html.escape(clean(text, keep))


def _table(table: Table) -> str:
    """A heading, the table, its notes."""
    text = [any(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]

    def line(tag: str, values: Sequence[str]) -> str:
        cells = (
            f"<{tag}{' class=text' if left else ''}>{_escape(value)}</{tag}>"
            for value, left in zip(values, text, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    rows = [line("td", [cell(value) for value in row]) for row in table.rows]
    notes = "".join(f"<li>{_escape(note)}</li>" for note in table.notes)
    body = "\n".join([line("th", table.columns), *rows])
    return f'<h2>{_escape(table.title)}</h2>\n<div class="scroll"><table>{body}</table></div>\n<ul>{notes}</ul>'


def _figures(figures: "Mapping[str, Figure]", captions: Mapping[str, str]) -> str:
    """The figures as pictures inside the document."""
    if not figures:
        return ""
    shown = []
    for name, figure in figures.items():
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=200)
        source = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
        caption = _escape(captions[name])
        shown.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return f'<h2>Figures</h2>\n<div class="figures">{"".join(shown)}</div>'


def _problems(problems: Sequence[Record]) -> str:
    """What failed, diverged or did not finish."""
    if not problems:
        return "<h2>Failures</h2>\n<p>None.</p>"
    items = (f"<li><code>{_escape(r.path)}</code>: <span class=bad>{_escape(r.problem)}</span></li>" for r in problems)
    return f"<h2>Failures</h2>\n<ul>{''.join(items)}</ul>"


def _settings(records: Sequence[Record]) -> str:
    """For each method and configuration file: the first complete run, and in what the others differ from each other."""
    from dassl.engine.comparison import OF_A_PROTOCOL

    runs: dict[str, list[Record]] = {}
    for record in records:
        if record.metrics:
            runs.setdefault(f"{record.place.trainer}: {record.place.cfg}", []).append(record)
    parts = ["<h2>Settings</h2>"]
    for name, own in runs.items():
        first = own[0].metrics
        about = {key: first.get(key) for key in ("backbone", "device", "commit", "versions", "created")}
        head = _escape(", ".join(f"{key}: {value}" for key, value in about.items() if value))
        differ = "".join(
            f"<li>{_escape(key)}: {_escape(' / '.join(value or repr(value) for value in by_value))}</li>"
            for key, by_value in disagreements(own, OF_A_PROTOCOL).items()
        )
        note = f"<p class=bad>The runs differ in:</p><ul>{differ}</ul>" if differ else ""
        settings = _escape(_lines(first.get("config", {})), "\n")
        parts.append(
            f"<details{' open' if differ else ''}><summary>{_escape(name)}</summary>{note}"
            f"<p>{head}</p><pre>{settings}</pre></details>"
        )
    return "\n".join(parts)


def _lines(tree: Mapping[str, Any], prefix: str = "") -> str:
    """A configuration as lines `KEY.KEY: value`."""
    lines = []
    for key, value in tree.items():
        lines += [_lines(value, f"{prefix}{key}.")] if isinstance(value, Mapping) else [f"{prefix}{key}: {value}"]
    return "\n".join(filter(None, lines))
