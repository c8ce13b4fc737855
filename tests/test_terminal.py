"""Names and texts from files are shown whole, and a terminal obeys none of them."""

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dsjax import errors
from dsjax.terminal import Console

EVIL = "runs/x[red]y :smile: \x1b[2J\x9b2J\u202eend"
SHOWN = r"runs/x[red]y :smile: \x1b[2J\x9b2J\u202eend"


def table() -> Table:
    drawn = Table(EVIL)
    drawn.add_row(EVIL)
    return drawn


PRINTERS = {
    "text": lambda c: c.print(EVIL),
    "rich text": lambda c: c.print(Text(EVIL)),
    "as it is": lambda c: c.out(EVIL),
    "table": lambda c: c.print(table()),
    "live": lambda c: Live(Text(EVIL), console=c, auto_refresh=False).__enter__().stop(),
}


@pytest.mark.parametrize("name", PRINTERS)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_whatever_prints_it_a_text_is_whole_and_written_out(name, is_terminal):
    file = io.StringIO()
    PRINTERS[name](Console(file=file, width=200, force_terminal=is_terminal))
    assert SHOWN in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()
    assert "\x9b" not in file.getvalue()


def test_rich_still_draws_with_its_own_codes():
    file = io.StringIO()
    Console(file=file, force_terminal=True).print("bold", style="bold")
    assert file.getvalue() == "\x1b[1mbold\x1b[0m\n"


def test_a_long_line_is_not_cut_and_a_table_keeps_to_the_width():
    file = io.StringIO()
    console = Console(file=file, width=30)
    console.print("a/" * 40)
    assert file.getvalue() == "a/" * 40 + "\n"
    console.print(table())
    assert max(map(len, file.getvalue().splitlines()[1:])) <= 30


def test_every_console_of_the_project_is_this_one():
    root = Path(errors.__file__).parent
    others = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                others += [path.name for alias in node.names if alias.name == "Console"]
    assert not others


def test_a_sentence_is_one_line_that_is_not_obeyed(capsys):
    errors.say("dsjax: a\nb\x1b[2J\tc")
    assert capsys.readouterr() == ("", "dsjax: a\\nb\\x1b[2J\tc\n")


@pytest.mark.parametrize("gone", ["closed", "full", "none"])
def test_a_sentence_that_nobody_reads_is_lost_without_a_traceback(gone, monkeypatch):
    """Nor does it wait in a buffer, to fail when the stream is closed."""
    if gone == "none":
        monkeypatch.setattr(sys, "stderr", None)
        errors.say("unheard")
        return
    with open("/dev/full" if gone == "full" else "/dev/null", "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        if gone == "closed":
            stream.close()
        errors.say("unheard")
        monkeypatch.undo()
