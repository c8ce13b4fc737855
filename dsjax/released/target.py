"""The folder that a conversion makes: written in a hidden one, which becomes it when it is whole.

A folder that is not there yet appears by one rename of `.NAME.partial` beside it. One that is there
and empty (a mount point, a link to another disk, the folder one is in) keeps its place: what was
written in `.partial` inside it is moved up, config.json last, by which every reader begins.

One process at a time writes: it holds the hidden folder (`disk.held`). With a `key` that names the
source, what an interrupted conversion left is gone on from; otherwise nothing of it is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsjax import disk
from dsjax.errors import UserError
from dsjax.released import files

STATE, INSIDE = ".state.json", ".partial"
REMEDY = "choose another folder"


class NoRoomError(UserError):
    """A disk has no room for what is still to be written; what is done is kept."""


class Target:
    """A folder to be made, and where it is written until it is whole."""

    def __init__(self, final: Path, key: str | None) -> None:
        """Refuse at once what cannot become such a folder; nothing is made yet.

        key: what it is made from; None starts anew and leaves nothing behind when it fails.
        """
        self.named, self._key = final, key
        disk.try_folder(final, REMEDY)
        self._final = Path(os.path.realpath(final))
        self._is_inside = self._final.is_dir()
        self.partial = self._final / INSIDE
        if not self._is_inside:
            self.partial = self._final.with_name(f".{_short(self._final.name)}.partial")
        self._refuse_taken()

    @property
    def name(self) -> str:
        """Name of the folder, also where it was given as `.`."""
        return self._final.name

    @contextlib.contextmanager
    def written(self, left: Callable[[], int]) -> Iterator[Path]:
        """The hidden folder while the block fills it; the target is there after the block.

        left: bytes still to be written, asked for when it is known what is there.
        """
        with self._held():
            try:
                self._refuse_taken()
                self._take()
                self._check_room(left())
                yield self.partial
                self._finish()
            except BaseException as error:
                self._failed(error)
                raise

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the hidden folder, or say that the target is another process's."""
        with contextlib.ExitStack() as stack:
            try:
                disk.make_folder(self.partial, REMEDY)
                stack.enter_context(disk.held(self.partial, f"wait for it, or {REMEDY}"))
            except UserError as error:
                self._refuse_taken()  # it was finished just now
                raise UserError(str(error).replace(str(self.partial), str(self.named))) from None
            yield

    def _refuse_taken(self) -> None:
        """Refuse a target that holds more than a conversion has left there."""
        if not os.path.lexists(self._final):
            return
        there = set(os.listdir(self._final)) if self._is_inside else {self._final.name}
        # The config is moved up last: where it is, the conversion was finished.
        if files.CONFIG not in there and not there - {INSIDE, *self._moved()}:
            return
        raise UserError(f"{self.named} is already there; move it away or {REMEDY}")

    def _state(self) -> dict[str, Any]:
        """The state that an earlier conversion wrote; empty where that is damaged."""
        with contextlib.suppress(UserError):
            return disk.read_object(self.partial / STATE, "")
        return {}

    def _moved(self) -> list[str]:
        """Names that an earlier conversion of the same source was moving up when it was stopped."""
        state = self._state()
        names = state.get("moved")
        if self._key is None or state.get("key") != self._key or not isinstance(names, list):
            return []
        return [name for name in names if isinstance(name, str)
                and name == os.path.basename(name) and name not in ("", ".", "..")]

    def _take(self) -> None:
        """Keep what is in the hidden folder if it is of the same source, remove it otherwise."""
        for name in self._moved():
            if os.path.lexists(self._final / name):
                os.rename(self._final / name, self.partial / name)
        if self._key is None or self._state().get("key") != self._key:
            self._clear()
        if self._key is not None:
            disk.write_json(self.partial / STATE, {"key": self._key})

    def _clear(self) -> None:
        """Remove all but the lock."""
        for path in self.partial.iterdir():
            if path.name == disk.LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.partial).free
        if needed > free:
            raise NoRoomError(f"{self.named} needs {files.size(needed)} and the disk has "
                            f"{files.size(free)} left; make room or {REMEDY}")

    def _finish(self) -> None:
        """Give the folder its name."""
        if not self._is_inside:
            (self.partial / STATE).unlink(missing_ok=True)
            os.rename(self.partial, self._final)
            (self._final / disk.LOCK).unlink(missing_ok=True)
            return
        names = sorted(set(os.listdir(self.partial)) - {STATE, disk.LOCK},
                       key=lambda name: (name == files.CONFIG, name))
        disk.write_json(self.partial / STATE, {"key": self._key, "moved": names})
        for name in names:
            os.rename(self.partial / name, self._final / name)
        shutil.rmtree(self.partial)

    def _failed(self, error: BaseException) -> None:
        """Clean up, and turn a full or closed disk into a sentence."""
        if not self.partial.is_dir():  # it was finished, or taken away
            return
        is_begun = set(os.listdir(self.partial)) - {STATE, disk.LOCK}
        reason = files.disk_error(error)
        is_disk = reason or isinstance(error, NoRoomError)
        is_of_source = isinstance(error, UserError) and not is_disk  # which must be another then
        if self._key is None or not is_begun or is_of_source:
            shutil.rmtree(self.partial, ignore_errors=True)
            after = "nothing of it is left"
        else:
            after = f"what is done is in {self.partial}, from which the same command goes on"
        if reason and not isinstance(error, UserError):
            raise UserError(f"{self.named} could not be written ({reason}); {after}; make room, or "
                            f"{REMEDY}") from error


def _short(name: str) -> str:
    """A name that has room for a dot and an ending beside it, in the 255 bytes that a name has."""
    raw = os.fsencode(name)
    return name if len(raw) < 240 else hashlib.sha256(raw).hexdigest()
