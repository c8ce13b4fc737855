"""One run from nothing, which several files look at and go on with."""

from pathlib import Path

import pytest

from tests.once import made_once
from tests.rl import small


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """Folder of a run that was never stopped; its base is in `base`."""
    def make(room: Path) -> None:
        (room / "said.txt").write_text(small.teach(small.LEARNS, room / "whole"))

    return made_once(tmp_path_factory, "rl", make) / "whole"
