"""Programs are kept where only their user writes, whole or not at all, and never too many.

That a second start is faster and its numbers the same to the bit is held by a process below.
"""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import zstandard

from dsjax.cli import main
from dsjax.runtime import program_cache


def entry(folder: Path, name: str, size: int = 300_000, age_s: float = 0.0) -> Path:
    """An entry as JAX writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"jit_{name}-0-cache"
    path.write_bytes(zstandard.ZstdCompressor().compress(os.urandom(size)))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize(("base", "home", "start"), [
    ("{tmp}/xdg", "{tmp}/home", "xdg"),
    ("", "{tmp}/home", "home/.cache"),
    ("relative", "{tmp}/home", "home/.cache"),
    ("{tmp}/with [a] %23 #?", "", "with [a] %23 #?"),
])
def test_the_folder_is_the_users_cache_folder(base, home, start, tmp_path):
    environ = {"XDG_CACHE_HOME": base.format(tmp=tmp_path), "HOME": home.format(tmp=tmp_path)}
    program_cache.keep(True, environ)
    folder = Path(environ[program_cache.VARIABLE])
    assert folder == tmp_path / start / "dsjax" / "jax" / program_cache.host()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert environ["JAX_COMPILATION_CACHE_MAX_SIZE"] == "-1"
    before = dict(environ)
    program_cache.keep(True, environ)  # as after tune_process
    assert environ == before


def test_without_a_folder_or_with_the_flag_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    for environ, why in [
        ({}, "HOME"), ({"HOME": ""}, "HOME"), ({"HOME": "here"}, "HOME"),
        ({"HOME": str(tmp_path / "file")}, "cannot be made"),
        ({"XDG_CACHE_HOME": str(tmp_path / ("x" * 300))}, "cannot be made"),
        ({"XDG_CACHE_HOME": str(tmp_path) + "/a\0b"}, "cannot be made"),
    ]:
        program_cache.keep(True, environ)
        assert program_cache.VARIABLE not in environ
        folder, said = program_cache.choose(environ)
        assert folder is None
        assert why in said
    environ = {"HOME": str(tmp_path)}
    program_cache.keep(False, environ)
    assert environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert not (tmp_path / ".cache").exists()


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    environ = {"HOME": str(tmp_path)}
    folder, _ = program_cache.choose(environ)
    folder.chmod(0o777)
    assert program_cache.choose(environ)[0] is None
    assert "others may write" in program_cache.choose(environ)[1]


def test_a_folder_that_the_user_named_is_left_alone(tmp_path):
    half = entry(tmp_path / "mine", "half", age_s=10_000)
    half.write_bytes(half.read_bytes()[:-1])
    environ = {program_cache.VARIABLE: str(tmp_path / "mine"), "HOME": str(tmp_path)}
    before = dict(environ)
    program_cache.keep(True, environ)
    assert environ == before
    assert half.exists()
    assert not (tmp_path / ".cache").exists()


def test_every_cut_of_an_entry_is_seen(tmp_path):
    for size in (0, 1, 300, 70_000, 300_000):
        path = entry(tmp_path, "a", size)
        data = path.read_bytes()
        assert program_cache.is_whole(path)
        for cut in {0, 3, 4, 5, 6, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:cut])
            assert not program_cache.is_whole(path), (size, cut)
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(10**6)))  # blocks of one byte
    assert program_cache.is_whole(path)


def test_half_an_entry_goes_unless_it_may_be_in_the_making(tmp_path):
    whole, half = (entry(tmp_path / "a", name, age_s=2000) for name in ("whole", "half"))
    young = entry(tmp_path / "a", "young")
    for path, age in ((half, 2000), (young, 0)):
        path.write_bytes(path.read_bytes()[:100])
        os.utime(path, (time.time() - age,) * 2)
    program_cache.tidy(tmp_path)
    assert (whole.exists(), half.exists(), young.exists()) == (True, False, True)
    os.utime(young, (time.time() - 700,) * 2)  # its process was killed; ten minutes later
    program_cache.tidy(tmp_path)
    assert not young.exists()


def test_what_was_used_longest_ago_goes_first_and_the_rest_fits(tmp_path):
    hosts = [tmp_path / "one", tmp_path / "other"]
    paths = [entry(hosts[i % 2], f"{i}", 10_000, age_s=10_000 * (9 - i)) for i in range(10)]
    now = time.time()
    os.utime(paths[0], (now, paths[0].stat().st_mtime))  # read just now
    program_cache.tidy(tmp_path, limit=35_000)
    assert [path.exists() for path in paths] == [True] + [False] * 7 + [True] * 2


def test_jax_says_nothing_about_an_entry_it_cannot_read():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        program_cache.keep(True, {})
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f'", stacklevel=1)
        warnings.warn("Error writing persistent compilation cache entry for 'jit_f'", stacklevel=1)
    assert not said


def test_the_flag_is_one_of_each_command_that_keeps_programs(capsys):
    for command in ("train", "demo", "generate"):
        assert main.main([command, "--help"]) == 0
        assert "--no-cache" in capsys.readouterr().out
    assert main.main(["bench", "train", "--help"]) == 0
    assert "compiled anew" in capsys.readouterr().out


CHILD = """
import sys
from dsjax.runtime import program_cache
if "--jax-first" in sys.argv:
    import jax
program_cache.keep("--no-cache" not in sys.argv)
import jax, jax.numpy as jnp
x = jax.random.normal(jax.random.key(0), (300, 300))
f = lambda x: jax.lax.fori_loop(0, 50, lambda i, y: jnp.tanh(y @ x + jnp.sin(y) * i), x).sum()
print(jax.jit(jax.grad(f))(x).tobytes().hex())
print(program_cache.describe())
"""


def _child(home: Path, *argv: str) -> tuple[str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("XDG", "JAX_COMP"))}
    environ |= {"HOME": str(home), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, "-c", CHILD, *argv], env=environ, check=True,
                          capture_output=True, text=True)
    assert done.stderr == ""
    numbers, said = done.stdout.split("\n", 1)
    return numbers, said


def test_a_kept_program_gives_the_same_bits_also_beside_half_an_entry(tmp_path):
    first, said = _child(tmp_path)
    assert f"kept in {tmp_path}/.cache/dsjax/jax/" in said
    entries = list(tmp_path.glob(".cache/dsjax/jax/*/*-cache"))
    assert entries
    newest = max(path.stat().st_mtime_ns for path in entries)
    early, said = _child(tmp_path, "--jax-first")  # as dsjax sft, which reads its folder for flags
    assert early == first
    assert f"kept in {tmp_path}/.cache/dsjax/jax/" in said
    assert max(path.stat().st_mtime_ns for path in tmp_path.glob(
        ".cache/dsjax/jax/*/*-cache")) == newest, "nothing is compiled anew"
    for path in entries:
        path.write_bytes(path.read_bytes()[:-7])
    assert _child(tmp_path)[0] == first
    anew, said = _child(tmp_path, "--no-cache", "--jax-first")
    assert anew == first
    assert "not kept" in said
