"""Length: a penalty for outputs that come near the limit.

Neither R1's rules nor the recipe of dsjax.rl.tasks has one: there length grows by itself. DAPO's is
here (arXiv 2503.14476, eq. 13), for runs whose outputs are cut off.
"""

from __future__ import annotations

from dsjax.errors import UserError


def overlong(tokens: int, limit: int, margin: int) -> float:
    """Return 0 up to limit - margin tokens, then a line down to -1 at the limit, -1 above.

    Raises:
        UserError: a margin that is none of the limit.
    """
    if not 0 < margin <= limit:
        raise UserError(f"a margin of {margin} tokens below a limit of {limit} is none; use 1 to "
                        f"{limit}")
    return -min(1.0, max(0.0, (tokens - (limit - margin)) / margin))
