"""The tour shows what its program prints, and says where a block fails."""

import re

import pytest

from dsjax.errors import UserError
from experiments.common import tour


@pytest.mark.slow
def test_the_tour_shows_what_its_blocks_print():
    """Shapes, choices and texts are exact; numbers have so few digits that rounding, some 1e-6
    between processors and versions of JAX, turns none of them."""
    page = tour.PAGE.read_text()
    assert len(re.findall(r"^```text", page, re.M)) > 8
    assert tour.fill(page) == page


def test_outputs_follow_their_blocks_and_names_live_on():
    blocks = "```python\nx = 1\n```\n\n```python\nprint(x + 1, ' ')\n```\n"
    page = f"a\n\n{blocks}\n```text\nold\n```\nb\n"
    made = tour.fill(page)
    assert made == page.replace("old", "2")
    assert tour.fill(made) == made


def test_a_block_that_fails_is_named_by_its_line():
    with pytest.raises(UserError, match=r"line 4.*division by zero"):
        tour.fill("a\n\n```python\n1 / 0\n```\n")
