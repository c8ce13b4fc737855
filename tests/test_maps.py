"""The maps that a reader sees, the package's docstring and the README's, show the rooms' floors."""

import re

import pytest

from tests.test_architecture import FLOORS, ROOT

ROWS = {"dsjax/__init__.py": r"^    (\d+| ) +(\w[\w, ]*?)  ",
        "README.md": r"^\| (\d+) \| ([^|]*) \|"}


@pytest.mark.parametrize("page", ROWS)
def test_a_map_has_every_room_on_its_floor(page: str) -> None:
    floor, found = 0, {}
    for number, rooms in re.findall(ROWS[page], (ROOT / page).read_text(), re.MULTILINE):
        floor = int(number) if number.strip() else floor
        found |= {name: floor for name in re.findall(r"\w+", rooms) if name in FLOORS}
    wanted = {path.stem: FLOORS[path.stem] for path in (ROOT / "dsjax").iterdir()
              if path.stem in FLOORS and not path.stem.startswith("_")}
    assert {name: found.get(name) for name in wanted} == wanted
