"""Colour on a terminal: lines of moment have one, plain lines where there is no terminal, and never in a log file."""

import io
import sys

import pytest

from dassl.output import PrintableStream, coloured, printable_streams
from dassl.utils import close_logger, setup_logger


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_terminal_that_shows_colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_lines_of_moment_have_a_colour():
    shown = coloured("=> result\n* accuracy: 50.0%\n* error: 50.0%\nfailed: out: OSError\n  note: odd\n")
    assert shown == (
        "=> result\n\x1b[32m* accuracy: 50.0%\x1b[0m\n* error: 50.0%\n\x1b[31mfailed: out: OSError\x1b[0m\n"
        "\x1b[33m  note: odd\x1b[0m\n"
    )


def test_only_a_terminal_gets_colours(monkeypatch):
    def written(stream) -> str:
        PrintableStream(stream).write("sweep: no\n")
        return stream.getvalue()

    assert written(Terminal()) == "\x1b[31msweep: no\x1b[0m\n"
    assert written(io.StringIO()) == "sweep: no\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Terminal()) == "sweep: no\n"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert written(Terminal()) == "sweep: no\n"


def test_a_name_cannot_bring_a_colour():
    stream = Terminal()
    PrintableStream(stream).write("class \x1b[31mred\x1b[0m\n")
    assert stream.getvalue() == "class \\x1b[31mred\\x1b[0m\n"


def test_the_log_file_is_plain(tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with printable_streams():
        setup_logger(str(tmp_path))
        sys.stdout.write("* accuracy: 50.00%\n")
        close_logger()
    assert stream.getvalue() == "\x1b[32m* accuracy: 50.00%\x1b[0m\n"
    assert (tmp_path / "log.txt").read_text() == "* accuracy: 50.00%\n"
