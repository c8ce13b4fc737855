"""A command's streams may be closed, full, or of a poor encoding: never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
QUICK = ("import sys; from dsjax.cli import main as m; m._run = lambda argv, is_process: {}; "
         "sys.exit(m.main())")


def shell(redirected: str, does: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose work is the expression `does`, under a shell's redirections.

    What is written stays in a buffer until it is flushed, as for most users.
    """
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", QUICK.format(does)],
        cwd=ROOT, env=buffered | environment, capture_output=True, timeout=60,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("size", [3, 100_000])  # at the end, and in the middle
def test_a_full_output_is_a_sentence_and_status_2(size):
    found = shell(">/dev/full", f"print('x' * {size}) or 0")
    assert found.returncode == 2
    assert found.stderr.startswith(b"dsjax: standard output cannot be read or written (No space")
    assert found.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_is_not_there_changes_nothing(closed):
    assert shell(closed, "print('words') or 0").returncode == 0
    assert shell(closed, "m.main(['nonsense'])").returncode == 2


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    """Or what a library writes to standard error would go into a checkpoint."""
    found = shell("2>&-", f"print(open({str(tmp_path / 'file')!r}, 'w').fileno()) or 0")
    assert int(found.stdout) > 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_an_encoding_lacks_become_marks(encoding):
    found = shell("", r"print('caf\u00e9 \u65e5 \udce9') or m.say('\u65e5') or 0",
                  PYTHONIOENCODING=encoding)
    assert found.returncode == 0
    assert found.stdout.decode(encoding) == {"ascii": "caf? ? ?\n", "cp1252": "caf\u00e9 ? ?\n"}[
        encoding]
    assert found.stderr == b"\\u65e5\n"
