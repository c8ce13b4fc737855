"""The command answers at once, runs what was asked, and says in a sentence why it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dsjax.cli
from dsjax.cli import main as command
from dsjax.cli.main import Command, main
from dsjax.cli.process import tune

ROOT = Path(__file__).parents[2]

SUBCOMMAND = '''
from dataclasses import dataclass

from dsjax.errors import UserError


@dataclass(frozen=True)
class Square:
    """Square a number."""

    side: int
    """Of the square."""


def main(args: Square) -> int:
    if args.side < 0:
        raise UserError(f"--side {args.side} is negative; use 0 or more")
    if args.side == 7:
        raise KeyboardInterrupt
    print(args.side ** 2)
    return 5
'''


@pytest.fixture
def square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subcommand `square` beside the real ones."""
    (tmp_path / "square.py").write_text(SUBCOMMAND)
    monkeypatch.setattr(dsjax.cli, "__path__", [*dsjax.cli.__path__, str(tmp_path)])
    monkeypatch.setitem(command.COMMANDS, "square", Command("square a number"))
    monkeypatch.setattr(command, "available", lambda: command.COMMANDS)
    monkeypatch.delitem(sys.modules, "dsjax.cli.square", raising=False)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60,
    )


def test_help_imports_none_of_the_slow_libraries() -> None:
    slow = "{'jax', 'numpy', 'flax', 'argparse', 'rich'}"
    found = python(
        "import sys; from dsjax.cli.main import main; main(['--help']); "
        f"print(sorted({slow} & set(sys.modules)))"
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_subcommand_that_has_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    others = {"__init__", "main"}
    files = {p.stem for p in Path(command.__file__).parent.glob("*.py")} - others
    assert set(listed) == files


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: dsjax" in capsys.readouterr().out


def test_a_misspelled_command_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shwo"]) == 2
    assert capsys.readouterr().err == "dsjax: unknown command 'shwo': did you mean 'show'?\n"


def test_status_and_arguments_pass_through(square, capsys) -> None:
    assert main(["square", "--side", "3"]) == 5
    assert capsys.readouterr().out == "9\n"


def test_bad_input_is_one_sentence_and_status_2(square, capsys) -> None:
    assert main(["square", "--side", "-3"]) == 2
    assert capsys.readouterr().err == "dsjax: --side -3 is negative; use 0 or more\n"


def test_an_argument_of_the_wrong_type_is_status_2(square, capsys) -> None:
    assert main(["square", "--side", "three"]) == 2
    assert capsys.readouterr().err == "dsjax: --side takes INT, not 'three'; see --help\n"


@pytest.mark.parametrize("argv", [["--help"], ["show", "--help"], ["data", "--help"],
                                  ["train", "tiny", "--help"]])
def test_help_that_nobody_reads_leaves_no_traceback(argv) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        process = subprocess.run(
            [sys.executable, "-m", "dsjax", *argv],
            cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60,
        )
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.parametrize("name", ["train", "show"])
def test_a_missing_config_is_a_sentence_with_the_choices(name, capsys) -> None:
    for argv in ([name], [name, "--json"]):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert f"begin as in `dsjax {name} tiny`, with one of deepseek_v2, " in error
        assert error.count("\n") == 1


def test_interrupting_is_a_sentence_and_status_130(square, capsys) -> None:
    assert main(["square", "--side", "7"]) == 130
    assert capsys.readouterr().err.strip() == "dsjax: interrupted"


def test_the_version_is_the_installed_one() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "dsjax", "--version"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )
    assert found.stdout.startswith(f"dsjax {dsjax.__version__} (jax ")


RESTART = (
    "import os; from dsjax.cli.process.tune import tune_process; print('start', flush=True); "
    "tune_process(); print(os.environ.get('GLIBC_TUNABLES'))"
)


def test_a_heavy_command_starts_once_more_with_huge_pages() -> None:
    """Where they are offered; the second start goes on, and elsewhere so does the first."""
    if tune.is_offered():
        assert python(RESTART).stdout.split() == ["start", "start", tune.TUNABLE]
    else:
        assert python(RESTART).stdout.split() == ["start", "None"]


def test_a_chosen_allocator_setting_is_left_alone() -> None:
    mine = "glibc.malloc.arena_max=2"
    assert python(RESTART, GLIBC_TUNABLES=mine).stdout.split() == ["start", mine]


def test_xla_options_join_the_flags_that_are_set_and_yield_to_chosen_ones() -> None:
    say = (
        "import os; from dsjax.cli.process.tune import tune_process; tune_process(); "
        "print(os.environ['XLA_FLAGS'])"
    )
    mine = "--xla_cpu_use_thunk_runtime=true"
    held = {"GLIBC_TUNABLES": ""}
    both = f"{mine} {tune.KERNELS} {tune.PATIENCE}"
    assert python(say, XLA_FLAGS=mine, **held).stdout.strip() == both
    chosen = "--xla_backend_extra_options=xla_cpu_optimize_for_size"
    kept = f"{chosen} {tune.PATIENCE}"
    assert python(say, XLA_FLAGS=chosen, **held).stdout.strip() == kept
    assert python(say, XLA_FLAGS=both, **held).stdout.strip() == both


def test_ctrl_c_while_a_library_is_loaded_is_no_traceback() -> None:
    """An extension module that is interrupted raises an ImportError of its own."""
    said = (
        "import os, signal, sys; from dsjax.cli import main as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # nohup ignores it
        "def load(argv, is_process):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: raise ImportError('initializing') from None\n"
        "m._run = load; sys.argv = ['dsjax', 'train']; print(m.main())"
    )
    found = python(said)
    assert (found.stdout.strip(), found.stderr.strip()) == ("130", "dsjax: interrupted")


@pytest.mark.parametrize(("raised", "words"), [
    (PermissionError(13, "Permission denied", "runs/x\x1b[2J"), r"runs/x\x1b[2J cannot be read"),
    (OSError(28, "No space left on device", "a", None, "b"), "a and b cannot be read or written"),
    (OSError(28, "No space left on device"), "make room"),
    (OSError(36, "File name too long", "a" * 300), "use shorter names"),
    (MemoryError(), "not enough memory"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UTF-8"),
])
def test_what_no_function_foresaw_is_a_sentence_and_how_to_see_more(
        raised, words, capsys, monkeypatch) -> None:
    def work(argv: list[str], is_process: bool) -> int:
        raise raised

    monkeypatch.setattr(command, "_run", work)
    assert main(["train"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("dsjax: ")
    assert said.endswith("; DSJAX_TRACEBACK=1 shows where\n")
    assert said.count("\n") == 1
    monkeypatch.setenv("DSJAX_TRACEBACK", "1")
    assert main(["train"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_programming_error_keeps_its_traceback(monkeypatch) -> None:
    def work(argv: list[str], is_process: bool) -> int:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(command, "_run", work)
    with pytest.raises(TypeError, match="a fault of ours"):
        main(["train"])


def test_a_word_that_would_fill_a_page_is_cut(capsys) -> None:
    for argv in (["x" * 5000], ["show", "x" * 5000], ["generate", "x" * 5000],
                 ["bench", "x" * 5000]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "x..." in said
        assert len(said) < 600


INTERRUPTED = """
import os, signal, sys
sys.argv = ["dsjax", "show"]
signal.signal(signal.SIGINT, signal.default_int_handler)
from dsjax.cli import main as m

class Loading:  # a module of C++ that is loaded, in which an exception ends the process
    def find_spec(self, name, path=None, target=None):
        if name == "slow_module":
            os.kill(os.getpid(), signal.SIGINT)
            print("still there", flush=True)

def work(argv, is_process):
    if {is_importing}:
        sys.meta_path.insert(0, Loading())
        import slow_module
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("cleaned up", flush=True)
        if {is_twice}:
            os.kill(os.getpid(), signal.SIGINT)
            print("still there", flush=True)

m._run = work
sys.exit(m.main())
"""


@pytest.mark.parametrize(("is_importing", "is_twice", "out"), [
    (True, False, ""), (False, False, "cleaned up"), (False, True, "cleaned up")])
def test_ctrl_c_ends_an_import_at_once_work_as_an_error_does_and_twice_everything(
        is_importing, is_twice, out) -> None:
    found = python(INTERRUPTED.format(is_importing=is_importing, is_twice=is_twice))
    assert found.returncode == 130
    assert found.stdout.strip() == out
    assert found.stderr.strip() == "dsjax: interrupted"


def test_ctrl_c_while_the_process_replaces_itself_waits_for_the_second_start() -> None:
    code = (
        "import os, signal, sys\n"
        "from dsjax.cli.process import interrupt\n"
        "from dsjax.cli import main as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "m._run = lambda argv, is_process: 0\n"
        "interrupt.hold_back()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('alive', flush=True)\n"
        "sys.exit(m.main())\n"
    )
    found = python(code)
    assert (found.returncode, found.stdout, found.stderr) == (
        130, "alive\n", "dsjax: interrupted\n")
