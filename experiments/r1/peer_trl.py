"""The peer: GRPO by trl of a checkpoint that dsjax exported, on questions that come in order.

Runs in an environment of its own (`python -m venv peer; peer/bin/pip install torch==2.13.0
trl==1.16.0`), which has no dsjax; `parity.py` hands it the folder, the questions and the settings.
Those are trl's names for what `dsjax rl` does: the mean by outputs, cut-off outputs out, advantages
over the group's deviation, one update a rollout, no KL, the clip ratio of 10, AdamW without decay.

Prints one JSON line: reward, length and seconds of every step, and versions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train and tell."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("folder", "questions", "end"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("seed", "steps", "prompts", "samples", "max-new-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--quick", action="store_true", help="two steps of four questions")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.prompts, args.samples = 2, 4, 4
    print(json.dumps(train(args)), flush=True)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Run trl's trainer."""
    import torch
    import transformers
    import trl
    from datasets import Dataset

    transformers.set_seed(args.seed)
    folder = Path(args.folder)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=args.end, pad_token=args.end,
        padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa",
        experts_implementation="grouped_mm")
    rows = [json.loads(line) for line in Path(args.questions).read_text().splitlines()]
    rewards: list[float] = []
    lengths: list[float] = []
    seconds: list[float] = []

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str],
               **_: Any) -> list[float]:
        found = [float(text.count(":") == 1 and text.partition(":")[2] == one)
                 for text, one in zip(completions, answer, strict=True)]
        rewards.append(sum(found) / len(found))
        lengths.append(sum(map(len, completion_ids)) / len(completion_ids))
        return found

    class Clock(transformers.TrainerCallback):
        """Seconds from a step's start, its rollout included, to its end."""

        def __init__(self) -> None:
            self.began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.began)
            self.began = now

    with tempfile.TemporaryDirectory() as out:
        trainer = trl.GRPOTrainer(
            model=model, processing_class=words, reward_funcs=reward, callbacks=[Clock()],
            train_dataset=Dataset.from_list(rows), args=trl.GRPOConfig(
                output_dir=out, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                disable_tqdm=True, seed=args.seed, shuffle_dataset=False, logging_steps=1000,
                gradient_checkpointing=False, max_steps=args.steps,
                per_device_train_batch_size=args.prompts * args.samples,
                num_generations=args.samples, max_completion_length=args.max_new_tokens,
                temperature=1.0, top_p=1.0, top_k=0, beta=0.0, epsilon=10.0, loss_type="grpo",
                scale_rewards="group", mask_truncated_completions=True, num_iterations=1,
                learning_rate=args.rate, lr_scheduler_type="constant", warmup_steps=0,
                adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.0,
                max_grad_norm=1.0))
        trainer.train()
    return {"rewards": rewards, "lengths": lengths, "seconds": [round(s, 3) for s in seconds],
            "versions": {"trl": trl.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__}}


if __name__ == "__main__":
    main()
