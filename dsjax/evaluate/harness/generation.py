"""Generation arguments of a request, as sampling and stop texts.

The harness's own `normalize_gen_kwargs` (lm_eval/models/utils.py, 0.4.13) says what they mean:
without `do_sample` a request is greedy unless it has a temperature, `do_sample: false` is always
greedy, and the number of new tokens has four names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dsjax.errors import UserError
from dsjax.evaluate.harness.installed import normalize_gen_kwargs
from dsjax.infer import Sampling

NUMBERS = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
           "frequency_penalty", "seed")
KNOWN = ("until", "do_sample", "temperature", "max_gen_toks", "num_beams", *NUMBERS)


class Asked(NamedTuple):
    """Sampling of an answer, and the texts that end it."""

    sampling: Sampling
    until: tuple[str, ...]
    is_seeded: bool
    """The request has a seed of its own."""


def read(given: Mapping[str, Any], max_gen_toks: int) -> Asked:
    """Read the arguments of a request; refuses those that nothing here obeys.

    max_gen_toks: new tokens where the request names no number.
    """
    try:
        known: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), max_gen_toks))
    except (TypeError, ValueError) as error:
        raise UserError(f"generation_kwargs {str(dict(given))[:200]} cannot be read ({error}); "
                        "mend them in the task's file or in --gen_kwargs") from None
    for name in known:
        if name not in KNOWN:
            raise UserError(f"generation_kwargs has {name[:60]!r}, which nothing here obeys; take "
                            f"it out, and choose from {', '.join(KNOWN)}")
    if known.get("num_beams", 1) != 1:
        raise UserError(f"generation_kwargs has num_beams={known['num_beams']}, and there is no "
                        "beam search here; use 1")
    until = [one for one in known["until"] if one is not None]
    if not all(isinstance(one, str) for one in until):
        raise UserError(f"generation_kwargs has until={str(until)[:100]}, which is not a list of "
                        "texts; mend it")
    # transformers draws at temperature 1 where `do_sample` alone is given.
    temperature = known.get("temperature", 1.0) if known["do_sample"] else 0.0
    numbers = {name: known[name] for name in NUMBERS if known.get(name) is not None}
    if numbers.get("top_k") == 0:  # transformers' word for all of them
        del numbers["top_k"]
    for name, value in {"temperature": temperature, **numbers}.items():
        is_whole = name in ("top_k", "seed")
        if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
            raise UserError(f"generation_kwargs has {name}={value!r:.60}, which is not a "
                            f"{'whole ' * is_whole}number; give one")
    try:
        sampling = Sampling(temperature, max_new_tokens=known["max_gen_toks"], **numbers)
    except ValueError as error:
        raise UserError(f"generation_kwargs: {error}") from None
    return Asked(sampling, tuple(one for one in until if one), "seed" in numbers)
