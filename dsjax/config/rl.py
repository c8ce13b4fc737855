"""Reinforcement learning from rules: rollouts, rewards, GRPO's choices, and the base before it.

Sizes of a step are R1's words: so many questions, so many samples of each (R1 report, arXiv v2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dsjax.config.fields import between, choices, counted, well_typed
from dsjax.config.parallel import ParallelConfig


@dataclass(frozen=True)
class RLConfig:
    """GRPO from rules. Samples are drawn from the whole distribution at temperature 1, as R1's."""

    steps: int = 30
    """Rollouts."""
    prompts: int = 32
    """Questions of a rollout."""
    samples: int = 8
    """Outputs of each question: a group."""
    updates: int = 1
    """Optimizer steps of a rollout, each on as many of its groups."""
    max_prompt_tokens: int = 16
    """Tokens of a question at most; a longer one is refused."""
    max_new_tokens: int = 23
    """Tokens of an output at most; one that is cut off there is truncated."""
    task: str = "sum"
    """Name of a task of dsjax.rl.tasks, or a file of problems (.jsonl) as GSM8K's or MATH's."""
    level: int = 8
    """Its difficulty; a file has its own."""
    exam: str | None = None
    """File of the exam's problems; None holds a tenth of the task's out."""
    template: str = "plain"
    """Words around a file's question: plain, question, boxed or r1_zero."""
    chat: bool = False
    """Ask through the checkpoint's chat template, each question as a user's message."""
    rewards: str = "colon"
    """Rules with commas between them, one with another weight than 1 as language:0.5."""
    preference: str | None = None
    """Folder of a preference model, for a file's questions without an answer (dsjax.rl.preference);
    None refuses such."""
    learning_rate: float = 1e-4
    """Rate of every step; R1 has 3e-6."""
    weight_decay: float = 0.0
    """On matrices."""
    advantage: Literal["relative", "centered"] = "relative"
    """Rewards less the group's mean, over its deviation or not (Dr. GRPO)."""
    aggregation: Literal["token", "sequence", "constant"] = "sequence"
    """Weights of tokens: all alike, all outputs alike, or 1 / max_new_tokens (Dr. GRPO)."""
    clip_low: float = 10.0
    """The ratio is cut at 1 - clip_low from below (R1: 10)."""
    clip_high: float = 10.0
    """And at 1 + clip_high from above (R1: 10)."""
    kl_weight: float = 0.001
    """Weight of the KL to the reference; 0 keeps no reference."""
    kl: Literal["k3", "unbiased"] = "k3"
    """R1's estimate of the KL, or V3.2's."""
    ratio: Literal["token", "sequence"] = "token"
    """A ratio for each token, or GSPO's for each output."""
    reference_every: int = 400
    """Steps after which the reference becomes the policy; 0 never."""
    replay_routes: bool = True
    """Let training take the experts that the engine took (router replay)."""
    engine: ParallelConfig | None = None
    """Layout of the engine, of data, fsdp and expert; None is the trainer's."""
    engine_apart: bool = False
    """Give the engine devices of its own, those after the trainer's."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Truncated importance weights where engine and trainer compute in other numbers."""
    correction_most: float = 2.0
    """The most such a weight may be."""
    samples_every: int = 5
    """Steps between outputs that are written to samples.jsonl."""
    eval_every: int = 10
    """Steps between exams; 0 has one at the end."""
    eval_prompts: int = 256
    """Held-out questions of an exam, each answered greedily and sampled once."""
    pass_samples: int = 0
    """Samples of each question at the first and the last exam, for pass@k; 0 leaves it out."""
    base_long: float = 0.25
    """Share of worked solutions in the text of the base."""
    base_right: float = 0.93
    """Share of the base's worked solutions that must be right; a base below is refused."""

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing and groups that do not divide."""
        well_typed(self)
        for name in ("steps", "prompts", "samples", "updates", "max_prompt_tokens",
                     "max_new_tokens", "level", "samples_every", "eval_prompts"):
            counted("RLConfig", **{name: getattr(self, name)})
        for name in ("reference_every", "eval_every", "pass_samples"):
            counted("RLConfig", 0, **{name: getattr(self, name)})
        if self.prompts % self.updates:
            raise ValueError(
                f"RLConfig.prompts={self.prompts} is not divisible by updates={self.updates}; "
                f"choose updates from {choices(self.prompts, self.updates)}")
        if self.samples < 2:
            raise ValueError("RLConfig.samples=1 makes groups of one, whose advantage is 0; use 2 "
                             "or more")
        if self.engine is not None and (self.engine.pipe > 1 or self.engine.interleave):
            raise ValueError("the engine lies on no pipeline and interleaves nothing; use "
                             "--rl.engine.data, --rl.engine.fsdp and --rl.engine.expert")
        between(self, "learning_rate", 1e-12, 1.0, "R1 has 3e-6")
        between(self, "weight_decay", 0.0, 1e3, "0 is none")
        for name in ("clip_low", "clip_high", "kl_weight"):
            between(self, name, 0.0, 1e6, "R1 has clips of 10 and a KL weight of 0.001")
        between(self, "correction_most", 1.0, 1e6, "2 is usual")
        for name in ("base_long", "base_right"):
            between(self, name, 0.0, 1.0, "it is a share")

    @property
    def rows(self) -> int:
        """Outputs of a rollout."""
        return self.prompts * self.samples
