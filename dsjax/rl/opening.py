"""Opening of a run: refusals before any work, the header's lines, and the terms of its rollouts."""

from __future__ import annotations

from pathlib import Path

from dsjax.config.rl import RLConfig
from dsjax.config.run import RunConfig
from dsjax.data.tokenizers.tokenizer import Tokenizer
from dsjax.errors import UserError
from dsjax.layers.backend import Backend
from dsjax.rl import preference, rollout, update
from dsjax.rl.preference import Judge
from dsjax.rl.rollout import Asked
from dsjax.rl.tasks import catalog, task
from dsjax.rl.weights import Places
from dsjax.runtime import header as machine
from dsjax.serve import template
from dsjax.serve.template import ChatTemplate
from dsjax.train import sharding
from dsjax.train.tuning import rows


def refuse(run: RunConfig) -> None:
    """Refuse before any work what has no rules, no task, too few problems or no model."""
    cfg = update.rl_of(run)
    rollout.rewards_of(cfg.rewards)
    judge_of(cfg)
    catalog.examined(cfg, run.seed)
    task.questions(catalog.taught(cfg), cfg.level, (run.seed,), 0, 1)
    if catalog.taught(cfg).rows and run.init_from is None:
        raise UserError(f"{cfg.task} has questions and no text to pre-train a base on; name a "
                        "model by --init-from")
    if cfg.chat and run.init_from is None:
        raise UserError("--rl.chat asks through a checkpoint's chat template, and a base that is "
                        "pre-trained here has none; name a model by --init-from")


def said(run: RunConfig, own: RunConfig, backend: Backend, places: Places,
         out: Path) -> dict[str, str]:
    """Lines of the header, by name."""
    cfg = update.rl_of(run)
    asked = ", by the checkpoint's chat template" if cfg.chat else ""
    judged = f", {cfg.preference} where there is no answer" if cfg.preference else ""
    return {
        "questions": f"{cfg.task}, level {cfg.level}{asked}; rewards {cfg.rewards}{judged}",
        "a step": f"{cfg.prompts} questions x {cfg.samples} outputs of at most "
                  f"{cfg.max_new_tokens} tokens, {cfg.updates} update{'s' * (cfg.updates > 1)} at "
                  f"{cfg.learning_rate:g}",
        "objective": f"advantage {cfg.advantage}, mean by {cfg.aggregation}, KL {cfg.kl_weight:g}, "
                     f"clip {cfg.clip_low:g} / {cfg.clip_high:g}, correction {cfg.correction}, "
                     f"routes {'replayed' if cfg.replay_routes else 'chosen anew'}",
    } | machine.describe(own, backend) | sharding.describe(own, backend, places.trainer) | {
        "engine": str(places), "folder": str(out)}


def asked_of(run: RunConfig, words: Tokenizer, out: Path) -> Asked:
    """Terms of a run's rollouts: size, rules, chat template and judge."""
    cfg = update.rl_of(run)
    return Asked(cfg.samples, cfg.max_prompt_tokens, cfg.max_new_tokens,
                 rollout.rewards_of(cfg.rewards), chat=_chat(run, words, out), judge=judge_of(cfg))


def judge_of(cfg: RLConfig) -> Judge | None:
    """The preference model of a config, where it names one."""
    return None if cfg.preference is None else preference.load(cfg.preference)


def _chat(run: RunConfig, words: Tokenizer, out: Path) -> ChatTemplate | None:
    """The chat template, which the run's folder keeps for runs that begin with it.

    Raises:
        UserError: it is asked for, and the checkpoint has none.
    """
    if not update.rl_of(run).chat:
        return None
    rows.keep_template(run, out)
    found = template.load(out, words)
    if found is None:
        raise UserError(f"--rl.chat asks through a chat template, and {run.init_from} has none; "
                        "put its tokenizer_config.json beside its tokenizer.json, or leave the "
                        "flag out")
    return found
