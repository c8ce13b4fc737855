"""A checkpoint comes into being at one moment: whoever dies before leaves the former one."""

import errno
import os
import types

import pytest

from dsjax.checkpoint import files
from dsjax.errors import UserError


class Killed(BaseException):
    """Like SIGKILL: nobody handles it."""


def _finish(folder, step, text):
    partial = folder / f"{files.PARTIAL}{step:08d}"
    (partial / "inner").mkdir(parents=True)
    (partial / "a").write_text(text)
    (partial / "inner" / "b").write_text(text * 3)
    files.finish(partial, step, {"w": ((2, 3), "int8")}, {"text": text})


@pytest.mark.parametrize("held", [1, 2])  # step 2 is new, or saved again
def test_death_at_any_flush_or_rename_leaves_a_whole_latest(tmp_path, monkeypatch, held):
    found = []
    for lifetime in range(50):
        folder = tmp_path / str(lifetime)
        folder.mkdir()
        for step in range(1, held + 1):
            _finish(folder, step, f"old {step}")
        breaths = iter(range(lifetime))

        def mortal(real, breaths=breaths):
            def call(*args):
                if next(breaths, None) is None:
                    raise Killed
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(files, "_flush", mortal(files._flush))
            patch.setattr(
                files, "os", types.SimpleNamespace(**{**vars(os), "rename": mortal(os.rename)})
            )
            try:
                _finish(folder, 2, "new")
                is_done = True
            except Killed:
                is_done = False
        files.tidy(folder)
        latest = files.steps(folder)[-1]
        found.append(files.verify(folder / files.name(latest)).extra["text"])
        assert found[-1] in (f"old {held}", "new")
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]
        if is_done:
            break
    assert is_done
    assert lifetime > 6
    assert found == sorted(found, reverse=True)


def test_a_save_that_was_stopped_is_finished_with_a_manifest_of_its_own(tmp_path):
    """A conversion goes on in the folder that it was stopped in, a manifest there or not."""
    partial = tmp_path / f"{files.PARTIAL}{1:08d}"
    partial.mkdir()
    (partial / "a").write_text("a")
    (partial / "manifest.json").write_text("of a longer list")
    files.finish(partial, 1, {}, {})
    assert list(files.verify(tmp_path / files.name(1)).files) == ["a"]


def test_a_folder_that_may_not_be_read_is_not_called_empty(tmp_path, monkeypatch):
    def forbidden(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    assert files.steps(tmp_path / "absent") == []
    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(UserError, match="permission denied"):
        files.steps(tmp_path)
