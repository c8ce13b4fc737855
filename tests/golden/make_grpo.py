"""Make tests/golden/grpo.json: advantages, losses, gradients and statistics of trl and verl.

    python -m tests.golden.make_grpo    # needs torch, trl 1.16 and verl 0.9; no jax

verl brings another antlr than math-verify and a package `tests` that hides this one: give it an
environment of its own, and take that package out of it.

The libraries' own code runs on arrays that are made here, in float64. trl has most of its equations
inside GRPOTrainer: its `_compute_loss` is run on a trainer whose model is an array of
log-probabilities, and the lines of `_generate_and_score_completions` that make advantages and
importance weights are run as they stand in its source.
"""

import collections
import importlib.metadata
import inspect
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np

PATH = Path(__file__).with_name("grpo.json")
GROUP = 3
LIMIT = 9
"""Tokens of an output at most, for the constant length."""
LOW, HIGH, BETA, MOST, THRESHOLD = 0.2, 0.3, 0.05, 1.5, 0.05
LOSSES = {"sequence_mean": "grpo", "token_mean": "bnpo", "constant_length": "dr_grpo"}
MODES = {"sequence_mean": "seq-mean-token-mean", "token_mean": "token-mean",
         "constant_length": "seq-mean-token-sum-norm"}


def arrays():
    """Two groups of three outputs; masked positions hold numbers that would show."""
    rng = np.random.default_rng(2501)
    lengths = np.array([7, 1, 4, 2, 6, 3])
    mask = np.arange(7)[None] < lengths[:, None]
    old = -rng.exponential(1.0, mask.shape)
    made = {"old": old, "new": old + 0.4 * rng.standard_normal(mask.shape),
            "engine": old + 0.3 * rng.standard_normal(mask.shape),
            "reference": old + 0.5 * rng.standard_normal(mask.shape)}
    made = {name: np.where(mask, values, -7.0) for name, values in made.items()}
    rewards = np.array([1.0, 0.0, 0.5, 2.0, 0.0, 0.0])
    return made | {"mask": mask, "rewards": rewards, "groups": np.repeat([4, 1], GROUP)}


def everything():
    """All that the two libraries say about the arrays."""
    return {"versions": {name: importlib.metadata.version(name) for name in ("trl", "verl")},
            "trl": trl(), "verl": verl()}


def tensors():
    import torch
    return {name: torch.tensor(values) for name, values in arrays().items()}


def with_gradient(loss, new):
    new = new.clone().requires_grad_()
    value = loss(new)
    value.backward()
    return {"loss": value.item(), "gradient": new.grad.tolist()}


def source_between(function, first, last):
    """Lines of a function's source from one to the line before another, dedented."""
    text = inspect.getsource(function)
    start = text.index(first)
    return textwrap.dedent(text[text.rindex("\n", 0, start) + 1 : text.index(last, start)])


def trl():
    import math

    import torch
    from trl.trainer import grpo_trainer

    t, mask = tensors(), torch.tensor(arrays()["mask"]).int()
    made = grpo_trainer.GRPOTrainer._generate_and_score_completions
    lines = source_between(made, 'if self.multi_objective_aggregation == "sum_then_normalize"',
                           "# Slice to keep only the local part")

    def advantages(scale):
        names = {
            "self": SimpleNamespace(multi_objective_aggregation="sum_then_normalize",
                                    scale_rewards=scale, reward_weights=torch.ones(1)),
            "rewards_per_func": t["rewards"][:, None], "device": "cpu", "num_generations": GROUP,
            "unscorable_mask": torch.zeros(6, dtype=bool), "torch": torch,
            "nanstd": grpo_trainer.nanstd}
        exec(lines, names)
        return names["advantages"]

    corrected = source_between(made, "per_token_logps_diff = (old_per_token_logps - sampling",
                               "# Compute the per-token log probabilities for the reference model")

    def importance(level):
        names = {
            "self": SimpleNamespace(vllm_importance_sampling_mode=f"{level}_truncate",
                                    vllm_importance_sampling_clip_min=None,
                                    vllm_importance_sampling_clip_max=MOST),
            "old_per_token_logps": t["old"], "sampling_per_token_logps": t["engine"], "mask": mask,
            "torch": torch, "math": math}
        exec(textwrap.dedent(corrected), names)
        return names["vllm_importance_sampling_ratio"]

    def loss(kind, level="token", beta=0.0, unbiased=False, threshold=None, weights=None):
        self = object.__new__(grpo_trainer.GRPOTrainer)
        own = {
            "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "_entropy_bonus_enabled": False,
            "off_policy_mask_threshold": threshold, "importance_sampling_level": level,
            "beta": beta, "loss_type": kind, "epsilon_low": LOW, "epsilon_high": HIGH,
            "args": SimpleNamespace(use_bias_correction_kl=unbiased, delta=None),
            "use_vllm": weights is not None, "vllm_importance_sampling_correction": True,
            "current_gradient_accumulation_steps": 1, "max_completion_length": LIMIT,
            "model": SimpleNamespace(training=True),
            "accelerator": SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
            "_metrics": collections.defaultdict(lambda: collections.defaultdict(list))}
        self.__dict__.update(own)
        ids = torch.zeros_like(mask)
        given = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids,
                 "completion_mask": mask, "advantages": advantages("group"),
                 "old_per_token_logps": t["old"], "ref_per_token_logps": t["reference"],
                 "sampling_per_token_logps": t["engine"]}
        if weights is not None:
            given["importance_sampling_ratio"] = weights

        def value(new):
            self._get_per_token_logps_and_entropies = lambda *_, **__: (new, new.detach(), None)
            return self._compute_loss(None, given)
        return with_gradient(value, t["new"])

    losses = {f"{name} {kl}": loss(kind, beta=0.0 if kl == "none" else BETA,
                                   unbiased=kl == "unbiased")
              for name, kind in LOSSES.items() for kl in ("none", "k3", "unbiased")}
    losses |= {
        "sequence ratio": loss("grpo", "sequence"),
        "off-policy": loss("grpo", beta=BETA, threshold=THRESHOLD),
        "token weights": loss("grpo", beta=BETA, weights=importance("token")),
        "sequence weights": loss("grpo", beta=BETA, weights=importance("sequence"))}
    kept = grpo_trainer.GRPOTrainer.get_off_policy_mask(
        advantages("group")[:, None], t["new"], t["engine"], mask, THRESHOLD)
    return {"relative": advantages("group").tolist(), "centered": advantages("none").tolist(),
            "token_weights": importance("token").tolist(), "is_on_policy": kept[:, 0].tolist(),
            "sequence_weights": importance("sequence").tolist(), "losses": losses}


def verl():
    import torch
    from verl.trainer.ppo import core_algos, rollout_corr_helper
    from verl.workers.config import ActorConfig

    t, mask = tensors(), torch.tensor(arrays()["mask"]).double()
    # An output that counts nowhere, as one that was cut off: the third.
    cut = mask.clone()
    cut[2] = 0

    def advantages(is_scaled):
        rewards = torch.zeros_like(mask)
        rewards[:, 0] = t["rewards"]
        return core_algos.compute_grpo_outcome_advantage(
            rewards, torch.ones_like(mask), arrays()["groups"],
            norm_adv_by_std_in_grpo=is_scaled)[0]

    config = ActorConfig(strategy="fsdp", rollout_n=GROUP, use_dynamic_bsz=True, clip_ratio_low=LOW,
                         clip_ratio_high=HIGH, clip_ratio_c=1e9,
                         global_batch_info={"loss_scale_factor": LIMIT})

    def total(values, within, mode):
        return core_algos.agg_loss(values, within, MODES[mode], loss_scale_factor=LIMIT)

    def loss(mode, kl, within):
        def value(new):
            away = core_algos.kl_penalty(new, t["reference"], "k3") if kl else 0 * new
            policy, _ = core_algos.compute_policy_loss_vanilla(
                t["old"], new, advantages(True), within, MODES[mode], config)
            return policy + BETA * total(away, within, mode)
        return with_gradient(value, t["new"])

    losses = {f"{mode} {'k3' if kl else 'none'}{' cut' if within is cut else ''}":
              loss(mode, kl, within)
              for mode in MODES for kl in (False, True) for within in (mask, cut)}
    losses["sequence ratio"] = with_gradient(
        lambda new: core_algos.compute_policy_loss_gspo(
            t["old"], new, advantages(True), mask, MODES["sequence_mean"], config)[0], t["new"])
    apart = t["old"] - t["engine"]
    weights = {level: rollout_corr_helper.compute_rollout_correction_weights(
        apart, mask, level, MOST)[0].tolist() for level in ("token", "sequence")}
    said = rollout_corr_helper.compute_offpolicy_metrics(t["old"], t["engine"], mask)
    return {"relative": advantages(True)[:, 0].tolist(),
            "centered": advantages(False)[:, 0].tolist(), "token_weights": weights["token"],
            "sequence_weights": weights["sequence"], "losses": losses,
            "statistics": {name: said[name] for name in ("kl", "k3_kl")}}


if __name__ == "__main__":
    PATH.write_text(json.dumps(everything(), indent=1) + "\n")
