"""Answer a prompt with a released folder that is larger than the machine's memory.

The folder is written first, with random weights. `dsjax generate` runs as a process of its own,
whose memory is looked at while it runs: what it holds itself (anonymous), and with files that it
maps. Pages of the checkpoint's files that the system keeps are not the process's, and go when
others need memory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.common import record
from experiments.common.command import Asked
from experiments.experts_cache import synthetic

PROMPT, NEW_TOKENS = "To be, or not to be", 32
EVERY = 0.1  # seconds between two looks at a process's memory


def main(asked: Asked) -> None:
    """Write the checkpoint, generate with each room, write the record."""
    size, caches = asked.values["gigabytes"], asked.values["caches"]
    experts = synthetic.CONFIG["n_routed_experts"]
    if asked.is_quick:
        size, caches, experts = 0.3, ("80MB",), 32
    with contextlib.ExitStack() as stack:
        place = asked.values["folder"] or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(place) / "checkpoint"
        if not (folder / "config.json").is_file():
            synthetic.write(folder, size, experts)
        there = synthetic.described(folder)
        made = [measured(folder, cache) for cache in caches]
    texts = {m["said"]["completions"][0]["text"] for m in made}
    assert len(texts) == 1, "the room for experts changes no token"
    rows = [["memory of the machine", *(f"{memory() / 1e9:.1f} GB" for _ in made)],
            ["routed experts in files", *(f"{there['expert_bytes'] / 1e9:.1f} GB" for _ in made)],
            ["of them, wanted by a token",
             *(f"{there['token_bytes'] / 1e9:.2f} GB" for _ in made)]]
    rows += [[name, *(value(m) for m in made)] for name, value in ROWS]
    asked.write("large", "a checkpoint larger than the machine's memory answers a prompt",
                ("what", *(f"--experts-cache {cache}" for cache in caches)), rows,
                measured=made, checkpoint=there)


ROWS: tuple[tuple[str, Any], ...] = (
    ("most memory of the process itself", lambda m: f"{m['anonymous'] / 1e9:.2f} GB"),
    ("most memory with mapped files", lambda m: f"{m['peak'] / 1e9:.2f} GB"),
    ("files that the system kept, at the end", lambda m: f"{m['page_cache'] / 1e9:.1f} GB"),
    ("experts in slots", lambda m: f"{_rate(m, 'hits'):.1%}"),
    ("fetched ahead", lambda m: f"{_rate(m, 'ahead'):.1%}"),
    ("predicted", lambda m: f"{m['said']['experts']['decode']['accuracy']:.1%}"),
    ("GB read a token", lambda m: f"{_decode(m)['read_bytes'] / (NEW_TOKENS - 1) / 1e9:.2f}"),
    ("first token after", lambda m: f"{m['said']['prefill_ms'] / 1e3:.1f} s"),
    ("tokens a second after it", lambda m: f"{m['said']['tok_s']:.2f}"),
    ("command, all in all", lambda m: f"{m['seconds']:.0f} s"),
)


def _decode(made: dict[str, Any]) -> dict[str, Any]:
    return made["said"]["experts"]["decode"]


def _rate(made: dict[str, Any], name: str) -> float:
    return _decode(made)[name] / _decode(made)["wanted"]


def measured(folder: Path, cache: str) -> dict[str, Any]:
    """Run the command; what it said, and the most memory that it had."""
    words = [sys.executable, "-m", "dsjax", "generate", str(folder), "--prompt", PROMPT,
             "--max-new-tokens", str(NEW_TOKENS), "--precision", "bf16", "--experts-cache", cache,
             "--json"]
    began, most = time.monotonic(), {"RssAnon": 0, "VmHWM": 0}
    with subprocess.Popen(words, cwd=record.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "a pipe"
        while process.poll() is None:
            for name, value in status(process.pid).items():
                most[name] = max(most[name], value)
            time.sleep(EVERY)
        said = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"dsjax generate ended with {process.returncode}")
    return {"said": json.loads(said), "anonymous": most["RssAnon"], "peak": most["VmHWM"],
            "page_cache": _kilobytes("/proc/meminfo", "Cached"),
            "seconds": time.monotonic() - began, "cache": cache}


def status(process: int) -> dict[str, int]:
    """Bytes of a process: its own, and the most that was resident; none when it is gone."""
    try:
        return {name: _kilobytes(f"/proc/{process}/status", name) for name in ("RssAnon", "VmHWM")}
    except (OSError, KeyError):
        return {}


def memory() -> int:
    """Bytes of memory that the machine has."""
    return _kilobytes("/proc/meminfo", "MemTotal")


def _kilobytes(path: str, name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
