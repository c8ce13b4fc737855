"""A program can neither do harm, nor leave anything behind, nor pass without a right answer."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from dsjax.errors import UserError
from dsjax.evaluate.grade import sandbox, supervisor, walls
from dsjax.evaluate.grade.sandbox import Check, Limits, Program
from tests.evaluate.grade import attacks
from tests.evaluate.grade.processes import adopting, children

LIMITS = Limits(cpu_seconds=1, seconds=60.0, memory=1 << 28)
CHECK = Check(f"assert f(3) == {attacks.EXPECTED}", ("f",))


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No child, dead or alive, and no file in the folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(folder))
    with adopting():
        before = children()
        yield
        assert children() <= before
    assert list(folder.iterdir()) == []


def escaped(body: str, **named) -> list[str]:
    """Run attempts; return those that were not refused."""
    for name, value in named.items():
        body = body.replace(f"{{{name}}}", str(value)).replace(f"{{{name}!r}}", repr(value))
    found = sandbox.run(body)
    assert (found.ending, found.error) == ("end", ""), found
    assert found.output.count("refused:") > 10
    return [line for line in found.output.splitlines() if line.startswith("escaped:")]


def test_files_outside_are_neither_read_nor_changed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    before = (tmp_path / "secret.txt").stat()
    data = Path(__file__).with_name("HumanEval.jsonl.gz")
    installed = Path(sysconfig.get_path("stdlib"), "site-packages").glob("*/*.py")
    assert escaped(attacks.FILES, here=str(tmp_path), data=str(data), project=sandbox.__file__,
                   packages=numpy.__file__, beside=[str(path) for path in installed][:3]) == []
    assert (tmp_path / "secret.txt").read_text() == "secret"
    after = (tmp_path / "secret.txt").stat()
    assert (before.st_mode, before.st_mtime, before.st_nlink) == (
        after.st_mode, after.st_mtime, after.st_nlink)
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "secret.txt", "temporary"}


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_files_are_held_by_every_landlock(version, tmp_path, monkeypatch):
    """An older kernel knows fewer rights; the filter holds what they lack."""
    told = f"from dsjax.evaluate.grade import supervisor, walls; walls.version = lambda: {version};"
    command = sandbox.COMMAND[-1].replace("from dsjax.evaluate.grade import supervisor;", told)
    assert command != sandbox.COMMAND[-1]
    monkeypatch.setattr(sandbox, "COMMAND", (*sandbox.COMMAND[:-1], command))
    test_files_outside_are_neither_read_nor_changed(tmp_path)
    assert escaped(attacks.PROCESSES) == []


def test_no_process_is_made_or_touched():
    assert escaped(attacks.PROCESSES) == []


def test_there_is_no_network(tmp_path):
    with (socket.create_server(("127.0.0.1", 0)) as server,
          socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local):
        local.bind(str(tmp_path / "socket"))
        local.setblocking(False)
        assert escaped(attacks.SOCKETS, port=server.getsockname()[1],
                       address=str(tmp_path / "socket")) == []
        with pytest.raises(BlockingIOError):
            local.recv(1)


def test_the_environment_is_wiped(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    found = sandbox.run("import os, sys; print(sorted(os.environ), os.listdir(), sys.argv, sys.path"
                        ", os.getcwd() == os.environ['HOME'])")
    assert "['HOME', 'LANG', 'TMPDIR'] [] ['-c'] " in found.output
    assert found.output.endswith("True\n")
    assert str(sandbox.ROOT) not in found.output
    assert "secret" not in found.output


def test_limits_end_what_does_not_end():
    programs = [Program(f"def f(x):\n    {body}", CHECK) for _, body, _ in attacks.ENDLESS]
    found = sandbox.run_all(programs, LIMITS, workers=8)
    wrong = [(name, outcome.ending, outcome.error)
             for (name, _, right), outcome in zip(attacks.ENDLESS, found, strict=True)
             if outcome.ending not in right]
    assert wrong == []
    assert all(len(outcome.output) <= LIMITS.output for outcome in found)


def test_who_waits_is_ended_by_the_clock():
    waiting = "import threading, time\ndef f(x):\n    time.sleep(1000)"
    found = sandbox.run(Program(waiting, CHECK), dataclasses.replace(LIMITS, seconds=0.5))
    assert found.ending == "time"


def test_nothing_passes_but_a_right_answer():
    programs = [Program(text, CHECK) for _, text in attacks.CHEATS]
    found = sandbox.run_all(programs, LIMITS, workers=8)
    names = [name for name, _ in attacks.CHEATS]
    assert [n for n, outcome in zip(names, found, strict=True) if outcome.ending == "end"] == []
    right = Program(f"def f(x): return {attacks.EXPECTED}", CHECK)
    assert sandbox.run(right, LIMITS).ending == "end"


def test_what_is_expected_is_not_where_the_program_is():
    """Neither in its frames, its objects or the pages around them, nor in its pipes."""
    want = "b7c1f0e25d"
    text = attacks.SEEK.replace("{want!r}", repr(want[::-1]))
    hidden = Check(f"assert f(3) == {want!r}", ("f",), given=f"secret = {want!r}")
    shown = Check(f"assert f({want!r}) == {want!r}", ("f",))
    found = sandbox.run_all([Program(text, check) for check in (hidden, shown)])
    assert [outcome.ending for outcome in found] == ["raised", "raised"]
    assert [outcome.output.rpartition(" ")[0] for outcome in found] == ["not found", "found"]


def test_a_program_without_a_check_says_itself_how_it_ends():
    texts = ["x = 1", "1 / 0", "import os; os._exit(3)", "import os; os.abort()", "def", "\0"]
    found = sandbox.run_all(texts, LIMITS, workers=2)
    assert [outcome.ending for outcome in found] == [
        "end", "raised", "exited", "killed", "raised", "raised"]
    assert found[1].error == "ZeroDivisionError: division by zero"
    assert "status 3" in found[2].error
    assert f"signal {signal.SIGABRT}" in found[3].error


def test_a_check_is_held_by_the_same_walls():
    check = Check("import os; os.fork()", ())
    found = sandbox.run(Program("pass", check), LIMITS)
    assert (found.ending, "PermissionError" in found.error) == ("raised", True)
    endless = sandbox.run(Program("pass", Check("while True: pass", ())), LIMITS)
    assert endless.ending == "cpu"
    silent = sandbox.run(Program("pass", Check("import os; os._exit(0)", ())), LIMITS)
    assert silent.ending == "exited"


def test_an_order_of_a_set_is_the_same_in_every_run():
    texts = ["print({str(i) for i in range(9)})"] * 2
    first, second = sandbox.run_all(texts, LIMITS)
    assert first.output == second.output


CALLER = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from dsjax.evaluate.grade import sandbox
sandbox.run("print(flush=True); open('x', 'w')\\nwhile True: pass",
            sandbox.Limits(cpu_seconds=600, seconds=600))
"""


def wait_until(is_so) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    pytest.fail("it never came")


def test_a_caller_that_is_killed_leaves_nothing(tmp_path):
    before, folder = children(), Path(sandbox.tempfile.gettempdir())
    with subprocess.Popen([sys.executable, "-c", CALLER, str(folder)], cwd=sandbox.ROOT) as caller:
        wait_until(lambda: any(folder.glob("*/x")))
        caller.kill()
        caller.wait()
        wait_until(lambda: not any(folder.iterdir()))

    def is_gone() -> bool:
        while children() - before and os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return children() == before

    wait_until(is_gone)


def test_a_supervisor_that_is_killed_takes_its_program_along():
    before = children()
    folder = Path(sandbox.tempfile.gettempdir())
    endless = "open('x', 'w')\nwhile True: pass"
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(sandbox.run, endless, Limits(cpu_seconds=600, seconds=600))
        wait_until(lambda: any(folder.glob("*/x")))
        (pid,) = children() - before
        os.kill(int(pid), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="supervisor"):
            found.result()

    def is_gone() -> bool:
        while children() - before and os.waitpid(-1, os.WNOHANG)[0]:
            continue
        return children() == before

    wait_until(is_gone)


STRAY = """
import ctypes, os, time
from dsjax.evaluate.grade import supervisor
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
reads, writes = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.write(writes, b"x")
        time.sleep(600)
    os._exit(0)
os.read(reads, 1)
supervisor.clear()
os.close(writes)
print(os.read(reads, 1) == b"")
"""


def test_a_process_that_got_away_is_killed_too():
    """It cannot be made behind the filter; this is the wall behind that one."""
    told = subprocess.run([sys.executable, "-c", STRAY], cwd=sandbox.ROOT, text=True, check=True,
                          capture_output=True, timeout=60)
    assert told.stdout == "True\n"


def test_a_machine_without_walls_runs_nothing(monkeypatch):
    monkeypatch.setattr(walls, "version", lambda: -1)
    with pytest.raises(UserError, match="Landlock"):
        sandbox.run("pass")
    monkeypatch.setattr(walls.sys, "platform", "darwin")
    with pytest.raises(UserError, match="darwin"):
        sandbox.run_all(["pass"])


def test_a_wall_that_the_kernel_refuses_is_a_sentence(monkeypatch):
    told = "from dsjax.evaluate.grade import supervisor, syscalls; syscalls.FAIL = 1 << 31; "
    command = sandbox.COMMAND[-1].replace("from dsjax.evaluate.grade import supervisor;",
                                          told + "syscalls.RETURN = 0xFFFF;")
    monkeypatch.setattr(sandbox, "COMMAND", (*sandbox.COMMAND[:-1], command))
    with pytest.raises(UserError, match="seccomp"):
        sandbox.run("print('ran')")


def test_a_reported_error_is_one_line():
    found = sandbox.run("raise ValueError('a\\nb' * 1000)", LIMITS)
    assert found.error == "ValueError: a"
    assert json.dumps(found.error)
    assert supervisor.READY.endswith(b"\n")
