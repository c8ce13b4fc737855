"""The parts of lm-evaluation-harness that are used here, of a version that they fit."""

import re
from importlib import metadata

from dsjax.errors import UserError

OLDEST, NEXT = (0, 4, 13), (0, 5)
REMEDY = "install it: pip install 'lm-eval>=0.4.13,<0.5'"


def require() -> None:
    """Refuse to go on without lm-eval, or with one that is too old or too new."""
    try:
        version = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise UserError(f"lm-evaluation-harness is not installed; {REMEDY}") from None
    if not OLDEST <= tuple(map(int, re.findall(r"\d+", version)[:3])) < NEXT:
        raise UserError(f"lm-evaluation-harness {version} is installed, and this fits 0.4.13 up to "
                        f"0.5; {REMEDY}")


require()

import lm_eval.models  # noqa: E402, F401 (the harness fills an empty registry only)
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import normalize_gen_kwargs  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

__all__ = ["TemplateLM", "get_rolling_token_windows", "make_disjoint_window",
           "normalize_gen_kwargs", "register_model", "require"]
