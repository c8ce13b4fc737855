"""Machines that an experiment compiles for, and whether their compilers are here."""

from __future__ import annotations

from collections.abc import Sequence

from dsjax.errors import UserError
from dsjax.plan import target


def require(names: Sequence[str]) -> None:
    """Refuse machines whose compiler is not installed, before any work."""
    for name in names:
        target.require(target.parse(name))


def here(names: Sequence[str]) -> list[str]:
    """Those machines whose compiler is installed.

    Raises UserError where there is none.
    """
    found, refused = [], []
    for name in names:
        try:
            require([name])
            found.append(name)
        except UserError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found
