"""A process that compares answers of mathematics, one a line, until its input ends.

Run as a file, apart from the package: it imports math-verify (and sympy), its caller does not. Out
of CPU or of memory it is ended by the kernel, in the midst of whatever it computes. The text that
it is given is never run: what reaches an evaluating parser is digits and operators alone.
"""

import contextlib
import json
import os
import resource
import signal
import sys

MEMORY = 4 << 30
"""Bytes of address space."""
PATIENCE = 10
"""Seconds of the clock for each of CPU, on a busy machine."""


def main() -> None:
    """Answer lines of {"answer", "gold", "seconds"}; the first line is null.

    An answer is a list: whether the two are equal, and the answer as it was read, "" where there is
    none.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else is said there
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        import math_verify
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), file=answers, flush=True)
        return
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        for clock, seconds in ((signal.ITIMER_PROF, asked["seconds"]),
                               (signal.ITIMER_REAL, PATIENCE * asked["seconds"])):
            signal.setitimer(clock, seconds)
        is_equal, read = False, ""
        with contextlib.suppress(RecursionError, MemoryError):
            # Its own timeout is an alarm of the main thread, which ends no long computation in C.
            gold, answer = (math_verify.parse(asked[which], parsing_timeout=None)
                            for which in ("gold", "answer"))
            is_equal = bool(math_verify.verify(gold=gold, target=answer, timeout_seconds=None))
            read = str(answer[0])[:1000] if answer else ""
        for clock in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(clock, 0)
        print(json.dumps([is_equal, read]), file=answers, flush=True)


if __name__ == "__main__":
    main()
