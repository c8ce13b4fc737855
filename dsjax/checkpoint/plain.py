"""Paths that orbax and tensorstore can take: a folder of any name, reached through a plain one.

orbax matches the path it is given as a pattern (`[1]`), tensorstore takes it apart as a URL (`%`,
`#`, `?`), and both want UTF-8. So neither sees a path with anything but plain characters: it gets a
link of a plain name instead, in a private folder for temporary files, which goes with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from dsjax.disk import cause
from dsjax.errors import UserError

_PLAIN = re.compile(r"[A-Za-z0-9_./+=,@-]+")
_LONGEST = 400  # so that names inside the folder fit too, and every process can be told of it
_links: dict[str, Path] = {}


def is_plain(folder: Path) -> bool:
    """True if every library takes a folder's path as it stands."""
    text = os.path.abspath(folder)
    return _PLAIN.fullmatch(text) is not None and len(text) < _LONGEST


def plain(folder: Path) -> Path:
    """A path of plain characters to a folder, which need not be there yet."""
    target = os.path.abspath(folder)
    if is_plain(folder):
        return Path(target)
    if target not in _links:
        _links[target] = _private() / f"{len(_links)}"
    link(_links[target], Path(target))
    return _links[target]


def link(at: Path, folder: Path) -> None:
    """Make a link, and the private folder it is in; those that are there already are fine."""
    try:
        with contextlib.suppress(FileExistsError):
            at.parent.mkdir(mode=0o700)
        if os.stat(at.parent).st_uid != os.geteuid():
            raise PermissionError(f"{at.parent} is another user's")
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.abspath(folder), at)
    except OSError as error:
        raise UserError(
            f"{folder} has characters that need a link in {at.parent.parent}, which cannot be made "
            f"({cause(error)}); name a folder of letters, digits, _, - and ., or set TMPDIR"
        ) from None


def _private() -> Path:
    """This process's folder for links, itself of a plain path."""
    if not _folders:
        for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
            if is_plain(Path(base)) and os.access(base, os.W_OK):
                break
        else:
            raise UserError("no folder for temporary files can be written to whose path is plain; "
                            "set TMPDIR to one of letters, digits, _, - and .")
        _folders.append(Path(tempfile.mkdtemp(prefix="dsjax-", dir=base)))
        atexit.register(_remove, os.getpid())
    return _folders[0]


_folders: list[Path] = []


def _remove(pid: int) -> None:
    """Remove the links when the process that made them ends, and not when a fork of it does."""
    if os.getpid() == pid:
        shutil.rmtree(_folders[0], ignore_errors=True)
