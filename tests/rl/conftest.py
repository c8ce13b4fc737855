"""One run from nothing, which several files look at and go on with."""

from pathlib import Path

import pytest

from tests.rl import small


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """Folder of a run that was never stopped; its base is in `base`."""
    folder = tmp_path_factory.mktemp("rl") / "whole"
    (folder.parent / "said.txt").write_text(small.teach(small.LEARNS, folder))
    return folder
