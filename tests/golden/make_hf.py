"""Make tests/golden/hf_*.npz and hf_r1_tensors.json: what transformers computes, for `make test`.

    python -m tests.golden.make_hf                  # needs torch and transformers
    python -m tests.golden.make_hf R1_SUMMARY.json  # also the R1 checkpoint's table of tensors

The summary maps name patterns (`{moe 3-60}`, `{0-255}`) to shape, dtype and count; it was read from
the headers of the released DeepSeek-R1 files. Gradients are kept as their norm and three random
projections each: a wrong number in a tensor moves all of them.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def digest(name: str, gradient: np.ndarray) -> np.ndarray:
    """Norm and three projections of a gradient on directions drawn from its name, [4] float64."""
    draw = np.random.RandomState(sum(name.encode()))
    flat = gradient.astype(np.float64).reshape(-1)
    along = draw.standard_normal((3, flat.size)) @ flat
    return np.concatenate([[np.linalg.norm(flat)], along])


def main(summary: Path | None) -> None:
    import torch
    import transformers

    from tests.conformance import peer, sweep

    arrays = {}
    for seed, (name, config) in enumerate(sweep.CONFIGS.items()):
        with tempfile.TemporaryDirectory() as made:
            folder = sweep.checkpoint(Path(made) / name, config, sweep.weights(config, seed))
            model, _ = peer.load(folder)
            tokens = sweep.tokens(seed, config["vocab_size"])
            found = peer.everything(model, tokens)
            arrays[f"{name}/greedy"] = np.array(peer.greedy(model, tokens[0]), np.int32)
        arrays[f"{name}/logits"] = found.logits
        arrays[f"{name}/loss"] = np.float64(found.loss)
        arrays |= {f"{name}/mtp{i}": a for i, a in enumerate(found.mtp)}
        ordered = sorted(found.gradients.items())
        arrays[f"{name}/gradients"] = np.stack([digest(k, g) for k, g in ordered])
        print(name, found.loss, flush=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(HERE / "hf_conformance.npz", made_with=versions, **arrays)
    if summary is not None:
        table = json.loads(summary.read_text())
        rows = {k: [v["shape"], v["dtype"], v["count"]] for k, v in sorted(table.items())}
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
        (HERE / "hf_r1_tensors.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
