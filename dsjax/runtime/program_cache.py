"""Compiled programs, kept between processes in a cache folder of the user's: where, and how much.

JAX keeps them (its persistent compilation cache); here are the folder and its care. The folder is
$XDG_CACHE_HOME/dsjax/jax/HOST or ~/.cache/dsjax/jax/HOST. HOST stands for the processor, because
programs for a CPU hold its instructions and a home folder may be shared by unlike machines. What
lies there is run, so it must be the user's own, and nobody else's to write. A
JAX_COMPILATION_CACHE_DIR that is set is left as it is: JAX uses it, and nothing here touches it.

JAX's own bound (jax_compilation_cache_max_size) needs the package filelock, which dsjax does not
depend on, and a process killed between an entry and the note of its time breaks it for good. So
its bound is off, and `tidy` removes the entries used longest ago when a process starts. It also
removes entries that a killed process left half written: JAX compiles anew where it finds one, but
never replaces it. Nothing of this may end a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

LIMIT = 2 << 30
"""Bytes that are kept, of all hosts together."""
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}
YOUNG_S = 600
"""Age below which an entry that is not whole may still be in the making."""
ZSTD = b"\x28\xb5\x2f\xfd"


def keep(is_kept: bool, environ: MutableMapping[str, str] = os.environ) -> None:
    """Tell JAX where to keep programs, or to keep none, also where it is imported already.

    `dsjax sft` reads its folder to know its flags, and with it comes JAX.
    """
    # A file that another process is writing, or a full disk: the program is compiled, no more.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    if not is_kept:
        environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif VARIABLE not in environ:
        folder, _ = choose(environ)
        if folder is not None:
            environ[VARIABLE] = str(folder)
            for name, value in SETTINGS.items():
                environ.setdefault(name, value)
            with contextlib.suppress(OSError):  # another process tidies too, or the disk is gone
                tidy(folder.parent)
    if environ is os.environ and "jax" in sys.modules:
        _tell(environ)


def _tell(environ: Mapping[str, str]) -> None:
    """Set what JAX has read of the environment when it was imported, before these were in it."""
    import jax

    jax.config.update("jax_enable_compilation_cache",
                      environ.get("JAX_ENABLE_COMPILATION_CACHE") != "false")
    if VARIABLE in environ:
        jax.config.update("jax_compilation_cache_dir", environ[VARIABLE])
        jax.config.update("jax_compilation_cache_max_size",
                          int(environ.get("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float(
            environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")))


def choose(environ: MutableMapping[str, str] = os.environ) -> tuple[Path | None, str]:
    """The folder for this host, made and the user's own; or None and why there is none."""
    home, base = environ.get("HOME", ""), environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification: a relative path is to be ignored
        start = Path(base)
    elif os.path.isabs(home):
        start = Path(home) / ".cache"
    else:
        return None, "neither XDG_CACHE_HOME nor HOME is the path of a folder"
    folder = start / "dsjax" / "jax" / host()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return None, f"{folder} cannot be made ({why})"
    if found.st_uid != os.getuid():
        return None, f"{folder} is another user's"
    if found.st_mode & 0o022:
        return None, f"others may write to {folder}, and what lies there is run"
    if not os.access(folder, os.W_OK | os.X_OK):
        return None, f"{folder} may not be written to"
    return folder, ""


def host() -> str:
    """Twelve hex digits that stand for this processor: its kind, model and instructions."""
    told = [platform.machine(), platform.processor(), platform.system()]
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        first = text.partition("\n\n")[0].splitlines()
        names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
        told += [line for line in first if line.partition("\t")[0].partition(":")[0].strip()
                 in (*names, "model name")]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def describe() -> str:
    """Say in the header of a run where programs are kept, or why not."""
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return "not kept: turned off"
    if folder is None:
        why = choose()[1]
        return f"not kept: {why}" if why else "not kept"
    is_ours = Path(folder).parts[-3:-1] == ("dsjax", "jax")
    return f"kept in {folder}" + (f", at most {LIMIT >> 30} GiB" if is_ours else "")


def tidy(root: Path, limit: int = LIMIT, now: float | None = None) -> None:
    """Remove entries that are not whole, then those used longest ago until `limit` bytes are left.

    Each entry is looked into once: `root`/checked is as old as the last look.
    """
    now = time.time() if now is None else now
    stamp = root / "checked"
    since = stamp.stat().st_mtime - 2 * YOUNG_S if stamp.exists() else 0.0
    kept = []
    for path, found in _files(root):
        is_new = since <= found.st_mtime < now - YOUNG_S
        if path.name.endswith("-cache") and is_new and not is_whole(path):
            path.unlink(missing_ok=True)
        elif path != stamp:
            kept.append((max(found.st_atime, found.st_mtime), path, found.st_size))
    stamp.touch()
    excess = sum(size for _, _, size in kept) - limit
    for _, path, size in sorted(kept, key=lambda entry: entry[0]):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):  # another process has removed it
                yield path, path.lstat()


def is_whole(path: Path) -> bool:
    """Return True if a file is one whole zstd frame, magic number to last block (RFC 8878)."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(5)
        if head[:4] != ZSTD or len(head) < 5:
            return False
        is_single, has_checksum = head[4] >> 5 & 1, head[4] >> 2 & 1
        content = (is_single, 2, 4, 8)[head[4] >> 6]
        at = 5 + (not is_single) + (0, 1, 2, 4)[head[4] & 3] + content
        is_last = 0
        while not is_last:
            file.seek(at)
            block = file.read(3)
            if len(block) < 3:
                return False
            number = int.from_bytes(block, "little")
            is_last, kind, length = number & 1, number >> 1 & 3, number >> 3
            at += 3 + (1 if kind == 1 else length)  # a run of one byte is stored as that byte
        return at + 4 * has_checksum == size
