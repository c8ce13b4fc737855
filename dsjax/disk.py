"""Files and folders as users have them: read within limits, written whole, held by one writer.

Every function refuses with a UserError that names the path, the cause and the remedy: a file that
is missing, a pipe, a folder, too large, cut short, not UTF-8, not JSON or nested without end; a
folder that cannot be made; a disk that is full.

A folder is held (`held`) by a lock of the kernel on its `.lock`, which ends with the process,
however that ends. Where the file system has no such locks, or keeps them to one host, the holder's
beat tells: it is written into the file every few seconds, and whoever finds another host's beat
unchanged for `PATIENCE_S` seconds of its own clock takes the folder over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsjax.errors import UserError

LIMIT = 256 << 20
"""Bytes above which a file is not one of ours: a tokenizer of a million ids has 60 MB."""
BEAT_S, PATIENCE_S = 3.0, 10.0
LOCK = ".lock"
# What lies there may have been put there: no link is followed, and no pipe waited for.
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def cause(error: BaseException) -> str:
    """Reason for a failure in a few words, without the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


# Reading


class UnreadableError(UserError):
    """A file that the machine does not let be read: nothing is known of what it holds."""


def is_absence(error: Exception) -> bool:
    """Return True if a failure says that nothing of that name is or can be there."""
    return not isinstance(error, OSError) or error.errno in (
        errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def read_bytes(path: Path | str, remedy: str, limit: int = LIMIT) -> bytes:
    """Return all of a regular file; links are followed.

    remedy: what to do when it cannot be read, an imperative without a full stop.
    """
    path = Path(path)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise UserError(f"{path} is {kind}; {remedy}")
        if found.st_size > limit:
            raise UserError(f"{path} has {found.st_size:,} bytes, above the {limit:,} that such a "
                            f"file may have; {remedy}")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raised = UserError if is_absence(error) else UnreadableError
        raise raised(f"{path} cannot be read ({cause(error)}); {remedy}") from None


def read_json(path: Path | str, remedy: str, limit: int = LIMIT) -> Any:
    """Return what a UTF-8 JSON file holds."""
    return parse_json(read_bytes(path, remedy, limit), path, remedy)


def read_object(path: Path | str, remedy: str, limit: int = LIMIT) -> dict[str, Any]:
    """Return the JSON object that a file holds."""
    data = read_json(path, remedy, limit)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds {_kind(data)} where a JSON object should be; {remedy}")
    return data


def parse_json(data: bytes | str, where: object, remedy: str) -> Any:
    """Return what a JSON text holds; `where` names it in a refusal."""
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError:
        raise UserError(f"{where} is nested too deep to be read; {remedy}") from None
    except ValueError as error:
        why = "it is empty" if not data.strip() else cause(error)
        raise UserError(f"{where} is not JSON ({why}); {remedy}") from None


def _kind(data: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(data), "a number")


# Writing


def write_whole(path: Path | str, data: bytes | memoryview | str,
                remedy: str = "make room or name another place") -> None:
    """Write a file whole or not at all; it has reached the disk on return.

    A link of that name is replaced, and what it points to stays as it is.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        try:
            with draft.open("wb") as file:
                file.write(data.encode("utf-8") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written ({cause(error)}); {remedy}") from error


def write_json(path: Path | str, data: Any,
               remedy: str = "make room or name another place") -> None:
    """Write a JSON file whole or not at all."""
    write_whole(path, json.dumps(data, indent=2) + "\n", remedy)


def to_json(data: Any, indent: int | None = None) -> str:
    """A text that every reader of JSON takes; Infinity and NaN, which JSON lacks, are refused."""
    try:
        return json.dumps(data, indent=indent, allow_nan=False)
    except ValueError:
        raise UserError("a number of the result is infinite or none at all, for which JSON has no "
                        "word; give smaller numbers, or leave --json out") from None


def free_name(path: Path) -> Path:
    """The path, or the first of `NAME-2.END`, `NAME-3.END`, ... that is not there."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def make_folder(path: Path | str, remedy: str) -> None:
    """Make a folder and those above it; one that is there already is fine."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be made ({_why_no_folder(Path(path), error)}); "
                        f"{remedy}") from None


def try_folder(path: Path | str, remedy: str) -> None:
    """Refuse a folder that cannot be made or written to, before any work; leaves nothing."""
    path = Path(path)
    try:
        missing = [p for p in (path, *path.parents) if not os.path.lexists(p)]
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".{os.getpid()}.part"
            probe.touch()
            probe.unlink()
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be made or written to "
                        f"({_why_no_folder(path, error)}); {remedy}") from None


def _why_no_folder(path: Path, error: Exception) -> str:
    """The part of the path that is in the way, or what the system says."""
    with contextlib.suppress(OSError, ValueError):
        for part in (path, *path.parents):
            if os.path.islink(part) and not os.path.exists(part):
                return f"{part} is a link to {os.readlink(part)}, which is not there"
            if os.path.exists(part):
                if not os.path.isdir(part):
                    return f"{part} is a file"
                break
    return cause(error).lower()


# Holding


@contextlib.contextmanager
def held(folder: Path | str, remedy: str) -> Iterator[None]:
    """Hold a folder, which is there, for this process while the block runs.

    Raises UserError, with who holds it, where another process does.
    """
    file = Path(folder) / LOCK
    handle = _claimed(file, folder, remedy)
    try:
        is_over = threading.Event()
        beats = threading.Thread(target=_beat, args=(handle, is_over), daemon=True, name="lock")
        beats.start()
        try:
            yield
        finally:
            is_over.set()
            beats.join()
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _claimed(file: Path, folder: Path | str, remedy: str) -> int:
    """Open and lock the file, which has its name on return: a holder may remove it at its end."""
    while True:
        try:
            handle = os.open(file, _OPEN, 0o666)
        except OSError as error:
            why = f"{file} is a link" if os.path.islink(file) else cause(error).lower()
            raise UserError(f"{folder} cannot be written to ({why}); {remedy}") from None
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise UserError(f"{folder} cannot be written to ({file} is another file's name or "
                                f"no regular file); {remedy}")
            _claim(handle, file, folder, remedy)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(file)):
                    return handle
        except OSError as error:  # a full disk
            os.close(handle)
            raise UserError(f"{folder} cannot be written to ({cause(error).lower()}); "
                            f"{remedy}") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _claim(handle: int, file: Path, folder: Path | str, remedy: str) -> None:
    """Lock the file, or refuse the folder with the name of its holder."""
    has_locks, is_free = True, True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError:  # a file system without locks: the beat alone tells
        has_locks = False
    found = _holder(file)
    if is_free and found and (not has_locks or found.get("boot") != boot()):
        until = time.monotonic() + PATIENCE_S
        while is_free and time.monotonic() < until:
            time.sleep(PATIENCE_S / 10)
            is_free = _holder(file) == found
    if not is_free:
        who = f"process {found.get('pid', '?')} on {found.get('host', '?')}"
        raise UserError(f"{folder} is being written by {who}; {remedy}")
    _write_beat(handle, 0)


def _beat(handle: int, is_over: threading.Event) -> None:
    """Tell hosts that do not see the lock that this process lives."""
    count = 0
    while not is_over.wait(BEAT_S):
        count += 1
        with contextlib.suppress(OSError):
            _write_beat(handle, count)


def _write_beat(handle: int, count: int) -> None:
    holder = {"host": socket.gethostname(), "boot": boot(), "pid": os.getpid(), "beat": count}
    text = json.dumps(holder).encode()
    os.pwrite(handle, text, 0)
    os.ftruncate(handle, len(text))
    os.fsync(handle)


def _holder(file: Path) -> dict[str, Any]:
    """Read what the last holder wrote; nothing when it ended well or was never there."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with file.open("rb") as opened:
            found = json.loads(opened.read(4096))
        return found if isinstance(found, dict) else {}
    return {}


def boot() -> str:
    """Name of this machine's present start, the same in all its containers; they share locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
