"""How text leaves the program: names that come from files and folders are shown as text, whatever they hold.

Class names, file names and paths may hold characters that move a cursor, hide or turn around what stands beside them,
or are a formula to a spreadsheet.  Every writer passes its text through :func:`clean`: a control, bidirectional or
invisible character is shown as its escape, ``\\x1b``.  What is stored (prompts, splits, records) keeps its names.
"""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

UNSAFE = re.compile(  # C0 and C1 controls; marks and embeddings of direction; characters without width; separators of
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)  # lines; halves of surrogate pairs, which are the bytes of undecodable file names; tags. Joiners of scripts stay.
COLOURS = (  # what lines begin with -> colour of a terminal
    (re.compile(r"^(?:\* accuracy: |mean  ).*$", re.M), 32),
    (re.compile(r"^(?:train\.py: |sweep: |failed: |not written: | *WRONG: | *MISSING: | *UNREADABLE: ).*$", re.M), 31),
    (re.compile(r"^(?:left out: |\* left out: |audit: | *note: | *LEFT OUT: ).*$", re.M), 33),
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are the wide forms of the others


def clean(text: str, keep: str = "") -> str:
    """Return text with escapes for control, bidirectional and invisible characters, for one line or one cell.

    Args:
        text: any text.
        keep: characters that stay, such as ``"\\n\\t"`` for text of several lines.
    """
    return UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable(text: str, stream: object) -> str:
    """Return clean text of several lines, with escapes also for what the encoding of a stream lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return clean(text, "\n\t").encode(encoding, "backslashreplace").decode(encoding)


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file: clean text, which no spreadsheet takes for a formula.

    Text that begins like a formula is quoted by an apostrophe, as spreadsheets quote text; numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def json_text(data: Any) -> str:
    """Return data as indented JSON that is readable and clean: what it says is unchanged, letters stay letters."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text) + "\n"


def wants_colour(stream: Any) -> bool:
    """Say whether a stream is a terminal that shows colours, and nobody has asked for none (``NO_COLOR``)."""
    asked = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return asked and bool(getattr(stream, "isatty", lambda: False)())


def coloured(text: str) -> str:
    """Return clean text with the lines of results in green, those of failures in red and of notes in yellow."""
    for lines, colour in COLOURS:
        text = lines.sub(f"\x1b[{colour}m\\g<0>\x1b[0m", text)
    return text


class PrintableStream:
    """A stream that shows text as :func:`printable` does; a carriage return stays at the ends, where bars need it.

    On a terminal lines that say something of moment have a colour; what goes to files never has.
    """

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.colour = wants_colour(target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["target"], name)

    def write(self, text: str) -> int:
        """Write clean text."""
        body = text.strip("\r")
        head = text[: len(text) - len(text.lstrip("\r"))]
        tail = text[len(head) + len(body) :]
        shown = printable(body, self.target)
        return self.target.write(f"{head}{coloured(shown) if self.colour else shown}{tail}")


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let all that is written to standard output and error in the block be printable; also a decorator of `main`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = PrintableStream(sys.stdout), PrintableStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class StdoutHandler(logging.StreamHandler):
    """Writes to the standard output of the moment, so that a later tee, or a test's capture, receives the messages."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Looked up at each message."""
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, clean, with escapes for what standard output cannot encode."""
        return printable(super().format(record), self.stream)


@functools.cache
def _handler() -> StdoutHandler:
    return StdoutHandler()


def log_to_stdout(*names: str) -> None:
    """Send the messages of the named loggers to standard output, bare, from level INFO on.  Twice is as once."""
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if _handler() not in logger.handlers:
            logger.addHandler(_handler())
