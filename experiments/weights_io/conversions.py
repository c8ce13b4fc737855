"""Convert a synthetic checkpoint of a few gigabytes each way; record memory, time and a restart."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dsjax import disk
from dsjax.released import config as hf_config
from dsjax.released import files as hf_files
from dsjax.released import names as hf_names
from experiments.common.command import Asked

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v3", "vocab_size": 65536, "hidden_size": 1024,
    "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 8,
    "kv_lora_rank": 256, "q_lora_rank": 384, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    "v_head_dim": 64, "num_hidden_layers": 13, "first_k_dense_replace": 1,
    "n_routed_experts": 64, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "moe_intermediate_size": 512, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
    "num_nextn_predict_layers": 1, "aux_loss_alpha": 0.0001, "norm_topk_prob": True,
}
SMALL: dict[str, Any] = CONFIG | {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 64,
}
SHARD = 500_000_000
QUICK = ("hf-to-dsjax", "dsjax-to-hf")
IN_MEMORY = """
import sys
from dsjax.released import hf
import jax
cfg, params = hf.load(sys.argv[1], dtype="stored")
jax.block_until_ready(params)
if len(sys.argv) > 2:
    hf.save(sys.argv[2], cfg, params)
held = sum(a.nbytes for a in jax.tree.leaves(params))
"""
PLACED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import dataclasses
from configs import tiny
from dsjax import weights
from dsjax.config.parallel import ParallelConfig
from dsjax.train import sharding
run = dataclasses.replace(tiny.config(), model=weights.model(sys.argv[1]),
                          parallel=ParallelConfig(data=2, fsdp=2, expert=2))
where = sharding.state_shardings(run, sharding.open_mesh(run)).params
params = weights.load(sys.argv[1], "float32", where)
jax.block_until_ready(params)
by_device = {}
for array in jax.tree.leaves(params):
    for shard in array.addressable_shards:
        by_device[shard.device] = by_device.get(shard.device, 0) + shard.data.nbytes
held = sum(by_device.values())
print("DEVICE", max(by_device.values()))
"""
TRAIN = """
import dataclasses, pathlib, sys
from configs import tiny
from dsjax.released import hf
from dsjax.checkpoint.store import Store
from dsjax.model import transformer
from dsjax.config.stored import run_to_json
cfg, params = hf.load(sys.argv[1], dtype="stored")
folder = pathlib.Path(sys.argv[2])
store = Store(folder / "checkpoints", 1, transformer.specs(cfg))
store.save(1, {"train": {"params": params}}, {})
store.close()
run_to_json(dataclasses.replace(tiny.config(), model=cfg), folder / "config.json")
"""
PEAK = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("PEAK", int(status["VmHWM"].split()[0]) * 1024, HELD)
"""


def synthesize(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Write a bfloat16 checkpoint; returns its bytes and those of its largest tensor."""
    tile = np.random.default_rng(0).standard_normal(1 << 22).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True)
    places = list(hf_names.placements(hf_config.read(config).model))
    weight_map: dict[str, str] = {}
    shard: dict[str, np.ndarray] = {}
    files = total = largest = 0

    def flush() -> None:
        nonlocal files, shard
        name = f"model-{files:05d}.safetensors"
        hf_files.write_file(folder / name, shard)
        weight_map.update(dict.fromkeys(shard, name))
        files, shard = files + 1, {}

    for i, place in enumerate(places):
        # Copies repeat their originals; others start elsewhere in the tile, so that none is equal.
        offset = 0 if place.copy_of or place.leaf in ("embed", "head") else 7 * i
        made = np.resize(np.roll(tile, offset), place.shape).copy()
        shard[place.name] = made.astype(np.float32) if place.leaf.endswith("bias") else made
        total, largest = total + made.nbytes, max(largest, made.nbytes)
        if sum(a.nbytes for a in shard.values()) > SHARD:
            flush()
    flush()
    disk.write_json(folder / hf_files.INDEX, {"metadata": {}, "weight_map": weight_map})
    disk.write_json(folder / hf_files.CONFIG, config)
    return total, largest


def measured(code: str, *args: Path | str, held: str = "0") -> tuple[int, int, float, int]:
    """Run code in a process of its own.

    Returns its peak bytes, bytes held on purpose, seconds, and the most that a device holds.
    """
    began = time.monotonic()
    text = code + PEAK.replace("HELD", held)
    done = subprocess.run([sys.executable, "-c", text, *map(str, args)], capture_output=True,
                          text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    said = {words[0]: words[1:] for line in done.stdout.splitlines() if (words := line.split())}
    peak, kept = map(int, said["PEAK"])
    device = int(said.get("DEVICE", ["0"])[0])
    return peak, kept, time.monotonic() - began, device


def convert(*words: Path | str) -> str:
    """Code that runs `dsjax convert` in its own process."""
    return f"from dsjax.cli import main\nassert main.main({['convert', *map(str, words)]!r}) == 0"


def cleared(at: Path, keep: set[str]) -> None:
    """Remove what is no later row's source, and what an interrupted row has left."""
    for path in at.iterdir():
        if path.is_dir() and path.name not in keep:
            shutil.rmtree(path)


def restart(source: Path, target: Path, whole: Path) -> tuple[str, float]:
    """Kill a conversion half-way and start it again; what was kept, and the seconds after."""
    command = [sys.executable, "-m", "dsjax", "convert", "hf-to-dsjax", str(source), str(target)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    size = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    partial = target.parent / f".{target.name}.partial"
    first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    there = 0
    while first.poll() is None and there < size / 2:
        time.sleep(0.2)
        # os.walk passes over folders that go away while it looks
        there = sum(_size(Path(at, n)) for at, _, names in os.walk(partial) for n in names)
    first.kill()
    first.wait()
    assert not target.exists(), "a killed conversion leaves nothing under the final name"
    began = time.monotonic()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    assert same(target, whole), "a resumed conversion equals an uninterrupted one"
    return f"{there / size:.0%} kept", time.monotonic() - began


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def same(a: Path, b: Path) -> bool:
    """True where the arrays of two run folders are equal, file by file."""
    names = [
        {p.relative_to(f).as_posix() for p in f.rglob("arrays/state/**/*") if p.is_file()}
        for f in (a, b)
    ]
    return names[0] == names[1] and all(
        filecmp.cmp(a / n, b / n, shallow=False) for n in names[0]
    )


def main(asked: Asked) -> None:
    """Measure, write the record."""
    config = SMALL if asked.is_quick else CONFIG
    with contextlib.ExitStack() as stack:
        at = Path(asked.values["folder"] or stack.enter_context(tempfile.TemporaryDirectory()))
        kept_at = at / "measured.json"
        measured_before: dict[str, Any] = {}
        if kept_at.is_file():
            measured_before = json.loads(kept_at.read_text())
        else:
            shutil.rmtree(at / "source", ignore_errors=True)
            measured_before["source"] = synthesize(at / "source", config)
            disk.write_json(kept_at, measured_before)
        total, largest = measured_before["source"]
        bound = 4 * largest + 10**9
        arms = {
            "hf-to-dsjax": (convert("hf-to-dsjax", at / "source", at / "run"), (), "0"),
            "dsjax-to-hf": (convert("dsjax-to-hf", at / "run", at / "back"), (), "0"),
            "hf-to-dsjax --dtype float32":
                (convert("hf-to-dsjax", at / "source", at / "wide", "--dtype", "float32"), (), "0"),
            "dsjax-to-hf --fp8": (convert("dsjax-to-hf", at / "run", at / "low", "--fp8"), (), "0"),
            "saving a trained run": (TRAIN, (at / "source", at / "trained"), "0"),
            "dsjax-to-hf of a trained run":
                (convert("dsjax-to-hf", at / "trained", at / "other"), (), "0"),
            "--init-from a released folder, 8 devices": (PLACED, (at / "source",), "held"),
            "--init-from a run folder, 8 devices": (PLACED, (at / "trained",), "held"),
            "hf.load": (IN_MEMORY, (at / "source",), "held"),
            "hf.load, hf.save": (IN_MEMORY, (at / "source", at / "again"), "held"),
        }
        if asked.is_quick:
            arms = {name: arms[name] for name in QUICK}
        rows, seconds = [], {}
        for name, (code, words, held) in arms.items():
            if name not in measured_before:
                cleared(at, keep={"source", "run", "trained"})
                measured_before[name] = measured(code, *words, held=held)
                disk.write_json(kept_at, measured_before)
            peak, kept, took, device = measured_before[name]
            if code == TRAIN:
                continue
            rows.append([name, f"{peak / 1e9:.2f}", f"{(peak - kept) / 1e9:.2f}",
                         f"{bound / 1e9:.2f}", f"{device / 1e9:.2f}" if device else "",
                         f"{took:.0f}"])
            seconds[name] = {"peak": peak, "held": kept, "seconds": took, "device": device}
            print(*rows[-1], flush=True)
        if not asked.is_quick:  # which is over before it is half-way
            cleared(at, keep={"source", "run"})
            share, took = restart(at / "source", at / "second", at / "run")
            rows.append([f"hf-to-dsjax, killed half-way ({share}), again", "", "", "", "",
                         f"{took:.0f}"])
    asked.write(
        "memory",
        "peak host memory of conversions stays under the largest tensor x 4 plus 1 GB",
        ["what", "peak GB", "without the parameters held", "bound GB", "most on a device GB",
         "seconds"],
        rows, measured=seconds,
        checkpoint={"bytes": total, "largest_tensor": largest, "config": config},
    )
