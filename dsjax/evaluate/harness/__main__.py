"""The `lm_eval` command with a model named `dsjax`: the same words, the same files.

    python -m dsjax.evaluate.harness --model dsjax --model_args folder=runs/x --tasks ...
"""

import os
import sys
import traceback

from dsjax.errors import UserError, say
from dsjax.runtime import program_cache


def main() -> int:
    """Run lm_eval's own command; 2 for what a user got wrong, in a sentence."""
    program_cache.keep(True)
    try:
        from dsjax.evaluate.harness import model

        assert model.DsjaxLM is not None, "the import registers it"
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        return _refused(error, f"dsjax: {error}")
    except FileNotFoundError as error:  # of a task's rows, by the library that reads them
        return _refused(error, f"dsjax: a file of a task is missing ({error}); put it there, or "
                               "name its place in the task's YAML file")
    except KeyboardInterrupt:
        return 130
    return 0


def _refused(error: Exception, sentence: str) -> int:
    if os.environ.get("DSJAX_TRACEBACK"):
        traceback.print_exception(error)
    say(sentence)
    return 2


if __name__ == "__main__":
    sys.exit(main())
