"""The peer: the same shape trained by transformers on torch, in its best form on CPU, or decoded.

Runs in an environment of its own (`python -m venv peer; peer/bin/pip install torch==2.13.0
transformers==5.23.0`), which has no dsjax, so `run.py` hands the shape over as JSON. Forms: experts
(grouped_mm, batched_mm, eager), attention (sdpa, eager), torch.compile or not, AdamW fused or
foreach.

Decoding and prefill have a static cache; greedy tokens are fed back, and the cache holds `--seq`
random tokens at first.

Prints one JSON line with the same keys as `dsjax bench`, the rate of torch's own square products
among them. Torch is imported once the words are understood.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import DeepseekV3Config

WARMUP, REPEATS = 3, 5
MATMUL = 1024  # the size that `dsjax bench` multiplies on a CPU
TOY = {
    "vocab": 256, "d_model": 32, "layers": 2, "dense_layers": 1, "dense_dim": 64, "init_std": 0.02,
    "attention": {"heads": 2, "q_rank": 16, "kv_rank": 16, "nope_dim": 8, "rope_dim": 8,
                  "value_dim": 8},
    "moe": {"experts": 8, "experts_per_token": 2, "expert_dim": 16, "shared_experts": 1,
            "groups": 1, "groups_per_token": 1, "scale": 1.0, "is_normalized": True},
}


def main() -> None:
    args = arguments()
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = json.loads(args.model)
    found = train(shape, args) if args.mode == "train" else infer(shape, args)
    a, b = torch.rand(MATMUL, MATMUL), torch.rand(MATMUL, MATMUL)
    peak = matmul_rate(lambda: torch.mm(a, b), MATMUL)
    print(json.dumps(found | {"peak_gflop_s": round(peak, 1)}), flush=True)


def train(shape: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Time whole optimizer steps."""
    import torch
    from transformers import DeepseekV3ForCausalLM

    model = DeepseekV3ForCausalLM(config(shape, args)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.1,
        fused=args.optimizer == "fused", foreach=args.optimizer == "foreach",
    )
    forward = torch.compile(model) if args.compile else model
    tokens = torch.randint(0, shape["vocab"], (args.batch, args.seq + 1))

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
            logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(),
                                                 tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    began = time.perf_counter()
    nats = [step()]
    first_s = time.perf_counter() - began
    wall, cpu = timed(step, args.steps, nats)
    return report(args, model, wall, cpu) | {
        "first_step_s": round(first_s, 2),
        "nats_first_last": [round(nats[0], 4), round(nats[-1], 4)],
    }


def infer(shape: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Time decoding or prefill in programs of `--steps` tokens."""
    import torch
    from transformers import DeepseekV3ForCausalLM

    length = args.seq
    args.seq += args.steps * (WARMUP + REPEATS)  # positions that the model must know
    model = DeepseekV3ForCausalLM(config(shape, args)).eval()
    model.config.use_cache = True
    tokens = torch.randint(0, shape["vocab"], (args.batch, length))
    with torch.inference_mode():
        one = (decoding if args.mode == "decode" else prefill)(model, tokens, args)
        wall, cpu = timed(one, REPEATS, [])
    args.seq = args.steps if args.mode == "decode" else length  # tokens of a call, a row
    return report(args, model, wall, cpu) | {"seq": length}


def decoding(model: Any, tokens: Any, args: argparse.Namespace) -> Callable[[], float]:
    """Return what decodes `--steps` tokens of every row."""
    import torch
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=args.seq)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    newest = logits[:, -1:].argmax(-1)
    at = tokens.shape[1]

    def one() -> float:
        nonlocal newest, at
        for _ in range(args.steps):
            place = torch.full((args.batch, 1), at)
            logits = forward(input_ids=newest, past_key_values=cache, use_cache=True,
                             position_ids=place).logits
            newest = logits[:, -1:].argmax(-1)
            at += 1
        return 0.0

    return one


def prefill(model: Any, tokens: Any, args: argparse.Namespace) -> Callable[[], float]:
    """Return what reads prompts into a fresh cache; the head sees the last token alone."""
    import torch
    from transformers import StaticCache

    forward = torch.compile(model, dynamic=False) if args.compile else model

    def one() -> float:
        cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + 1)
        forward(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return 0.0

    return one


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--mode", choices=("train", "decode", "prefill"), default="train")
    parser.add_argument("--model", help="dsjax's ModelConfig as JSON (needed, but for --quick)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seq", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--experts", default="grouped_mm")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--compile", type=int, choices=(0, 1), default=1)
    parser.add_argument("--optimizer", choices=("fused", "foreach"), default="fused")
    parser.add_argument("--quick", action="store_true", help="2 steps of a toy, not compiled")
    args = parser.parse_args()
    if args.quick:
        args.model, args.steps, args.compile = args.model or json.dumps(TOY), 2, 0
    if args.model is None:
        parser.error("--model is missing; experiments/speed/run.py gives it")
    return args


def config(shape: dict[str, Any], args: argparse.Namespace) -> DeepseekV3Config:
    """The same model in the peer's words."""
    from transformers import DeepseekV3Config

    a, moe = shape["attention"], shape["moe"]
    made = DeepseekV3Config(
        vocab_size=shape["vocab"],
        hidden_size=shape["d_model"],
        intermediate_size=shape["dense_dim"],
        moe_intermediate_size=moe["expert_dim"],
        num_hidden_layers=shape["layers"],
        first_k_dense_replace=shape["dense_layers"],
        num_attention_heads=a["heads"],
        num_key_value_heads=a["heads"],
        q_lora_rank=a["q_rank"],
        kv_lora_rank=a["kv_rank"],
        qk_nope_head_dim=a["nope_dim"],
        qk_rope_head_dim=a["rope_dim"],
        v_head_dim=a["value_dim"],
        n_routed_experts=moe["experts"],
        num_experts_per_tok=moe["experts_per_token"],
        n_shared_experts=moe["shared_experts"],
        n_group=moe["groups"],
        topk_group=moe["groups_per_token"],
        routed_scaling_factor=moe["scale"],
        norm_topk_prob=moe["is_normalized"],
        initializer_range=shape["init_std"],
        max_position_embeddings=args.seq,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation=args.attention,
    )
    made._experts_implementation = args.experts
    return made


def timed(step: Any, steps: int, nats: list[float]) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds a step after the warm-up."""
    wall, cpu = [], []
    for _ in range(WARMUP + steps):
        cpu_began, began = time.process_time(), time.perf_counter()
        nats.append(step())
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    return wall[WARMUP:], cpu[WARMUP:]


def matmul_rate(product: Callable[[], Any], size: int, budget_s: float = 0.3) -> float:
    """Highest rate, in GFLOP/s, of a product of `size`-square matrices repeated for a time."""
    product()
    best, end = math.inf, time.perf_counter() + budget_s
    while (began := time.perf_counter()) < end:
        product()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e9


def report(args: argparse.Namespace, model: torch.nn.Module, wall: list[float],
           cpu: list[float]) -> dict[str, Any]:
    import torch
    import transformers

    tokens = args.batch * args.seq
    return {
        "mode": args.mode,
        "dtype": args.dtype,
        "form": f"{args.experts}, {args.attention}, compile {args.compile}, {args.optimizer}",
        "batch": args.batch,
        "seq": args.seq,
        "tok_s": round(tokens / statistics.median(wall), 1),
        "tok_s_best": round(tokens / min(wall), 1),
        "tok_per_cpu_s": round(tokens / statistics.median(cpu), 1),
        "params": sum(p.numel() for p in model.parameters()),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    main()
