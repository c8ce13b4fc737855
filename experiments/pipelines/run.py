"""Run the parts of the study, each in a process of its own: `python -m ... [PART ...]`.

Parts: schedules, executed, overhead, curves, ahead; all of them unless some are named.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

DEVICES = {"executed": 4, "overhead": 1}
PARTS = ("schedules", "executed", "overhead", "curves", "ahead")


def main(parts: list[str]) -> int:
    """Run parts; the exit status of the first that fails."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        print(f"no part {', '.join(unknown)}; choose from {', '.join(PARTS)}", file=sys.stderr)
        return 2
    for part in parts or PARTS:
        env = os.environ | {"JAX_PLATFORMS": "cpu"}
        if part in DEVICES:
            env["JAX_NUM_CPU_DEVICES"] = str(DEVICES[part])
        code = f"import experiments.pipelines.run as run; run.one({part!r})"
        done = subprocess.run([sys.executable, "-c", code], env=env)
        if done.returncode:
            return done.returncode
    return 0


def one(part: str) -> None:
    """Run a part in this process."""
    from dsjax.cli.tune import tune_process

    if part in DEVICES:
        tune_process()
    importlib.import_module(f"experiments.pipelines.{part}").main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
