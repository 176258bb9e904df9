"""Pictures on which two methods differ, with the truth and both answers, as HTML that holds the pictures."""

import base64
import html
import io
import os
from collections.abc import Sequence

from PIL import Image

from dassl.output import clean
from dassl.utils import read_image
from results.by_image import Matched, differing

SIDE = 128  # pixels of the longer side of a picture
PICTURES = 24  # of each list of classes
CSS = """
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; } .sheet figure { flex: 0 0 9.5rem; }
.sheet img { width: auto; max-width: 100%; height: 6.5rem; } .sheet figcaption { line-height: 1.3; }
.right { color: #0a6b2d; } .wrong { color: #a40000; }
"""


def contact_sheet(matched: Sequence[Matched], first: str, second: str, root: str) -> str:
    """A heading and the pictures for each list of classes; a sentence where they are not there.

    Args:
        matched: the answers of both methods, by data set and list of classes.
        first, second: what the methods are called.
        root: folder of the data sets; "" for the one that the runs were made with.
    """
    parts = [f"<h2>Images on which {html.escape(clean(first))} and {html.escape(clean(second))} differ</h2>"]
    for role in dict.fromkeys(own.role for own in matched):
        sets = [own for own in matched if own.role == role]
        chosen = _chosen(sets)
        total = sum(len(differing(own)) for own in sets)
        parts.append(f"<h3>{html.escape(role)} classes: {len(chosen)} of {total} images</h3>")
        pictures = [_thumbnail(root or own.root, str(own.paths[row])) for own, row in chosen]
        shown = zip(chosen, pictures, strict=True)
        figures = [_figure(own, row, picture, first, second) for (own, row), picture in shown if picture]
        if absent := pictures.count(""):
            where = html.escape(clean(root or sets[0].root or "the folder of the data sets"))
            parts.append(f"<p>{absent} pictures are left out: they are not in {where} (--root names it).</p>")
        parts.append(f'<div class="sheet">{"".join(figures)}</div>')
    return "\n".join(parts)


def _chosen(sets: Sequence[Matched]) -> list[tuple[Matched, int]]:
    """The first images of each set in turn, until there are enough."""
    rows = [[(own, int(row)) for row in differing(own)[:PICTURES]] for own in sets]
    turns = [own[i] for i in range(PICTURES) for own in rows if i < len(own)]
    return turns[:PICTURES]


def _thumbnail(root: str, path: str) -> str:
    """A picture below the folder as base64 of a JPEG; "" where it is not there, or no picture."""
    whole = os.path.realpath(os.path.join(root, path))
    if not root or os.path.isabs(path) or ".." in path.split("/") or not os.path.isfile(whole):
        return ""  # a file of predictions chooses pictures below the root alone
    try:
        image = read_image(whole)
    except (ValueError, OSError):
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="jpeg", quality=85)
    return base64.b64encode(out.getvalue()).decode()


def _figure(own: Matched, row: int, picture: str, first: str, second: str) -> str:
    """A picture with what is to be seen on it and what the methods answer."""
    truth, *answers = (int(which[row]) for which in (own.truth, *own.usual))
    lines = [f"<b>{_name(own, truth)}</b> ({html.escape(clean(own.dataset))})"]
    for name, answer in zip((first, second), answers, strict=True):
        kind = "right" if answer == truth else "wrong"
        lines.append(f"{html.escape(clean(name))}: <span class={kind}>{_name(own, answer)}</span>")
    caption = "<br>".join(lines)
    path = html.escape(clean(str(own.paths[row])), quote=True)
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" alt="{path}" title="{path}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _name(own: Matched, label: int) -> str:
    return html.escape(clean(str(own.classnames[label])))
