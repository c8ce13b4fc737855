"""Update of the policy from a rollout: GRPO's loss handed to the train step.

The train step divides a sum over targets by their weights' sum (`model.loss`), and GRPO's weights
say themselves by what each token is divided. So a row's own weights are 1 at tokens that count, and
GRPO's travel beside them, times the number of those tokens: what the step minimizes is then the sum
of weights * token loss, whichever the aggregation, and its `next_token` is -log pi, averaged over
tokens that count, an estimate of the policy's entropy.

Axes: B outputs, T positions, L mixture layers, K experts per token, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dsjax.config.loss import LossConfig
from dsjax.config.rl import RLConfig
from dsjax.config.run import RunConfig, TrainConfig
from dsjax.config.schedule import LearningRate
from dsjax.layers.backend import Backend
from dsjax.layers.remat import keep_all
from dsjax.model import transformer
from dsjax.model.transformer import TransformerParams
from dsjax.ops import token_loss as token_losses
from dsjax.ops.token_loss import Targets, TokenLoss
from dsjax.parallel import mesh as meshes
from dsjax.rl.objective import advantage, loss, mismatch, ratio, weights
from dsjax.rl.objective.mismatch import Mismatch
from dsjax.rl.rollout import Rollout
from dsjax.train import sharding

Rows = dict[str, np.ndarray]


def training_run(run: RunConfig) -> RunConfig:
    """The run whose steps update the policy: a constant rate, no balance, routers' biases frozen.

    A row is a question and its output; a batch is the share of a rollout that an update takes.
    """
    cfg = rl_of(run)
    return dataclasses.replace(
        run, rl=cfg,
        train=TrainConfig(steps=cfg.steps * cfg.updates, batch_size=cfg.rows // cfg.updates,
                          seq_len=cfg.max_prompt_tokens + cfg.max_new_tokens - 1,
                          microbatches=run.train.microbatches),
        learning_rate=LearningRate(peak=cfg.learning_rate,
                                   constant_steps=cfg.steps * cfg.updates),
        loss=LossConfig(balance=0.0, mtp_weight=0.0, mtp_weight_late=0.0, bias_speed=0.0),
        optimizer=dataclasses.replace(run.optimizer, weight_decay=cfg.weight_decay, ema_decay=0.0))


def rl_of(run: RunConfig) -> RLConfig:
    """The part of a config that this is about."""
    return RLConfig() if run.rl is None else run.rl


def objective_of(cfg: RLConfig) -> loss.Objective:
    """GRPO's choices of a config."""
    return loss.Objective(cfg.clip_low, cfg.clip_high, cfg.kl_weight, cfg.kl, cfg.ratio)


def token_loss(cfg: RLConfig) -> TokenLoss:
    """GRPO's token loss with the weights that travel beside the rows' own, see above."""
    inner = loss.token_loss(objective_of(cfg))

    def of_rows(logprobs: Array, targets: Targets) -> Array:
        own = jnp.where(targets.weights != 0, targets.extra["share"], 0.0)
        return inner(logprobs, Targets(targets.ids, own, targets.extra))

    return of_rows


@dataclass(frozen=True)
class Known:
    """Log-probabilities of the output tokens, and how far both sides agree."""

    old: np.ndarray  # [B, T] by the trainer, before the first update of the rollout
    reference: np.ndarray | None  # [B, T]
    mismatch: Mismatch
    equal_routes: float
    """Share of (token, layer) whose experts the trainer's router would choose too; NaN where the
    engine keeps no routes."""


Score = Callable[[TransformerParams, Array, Array, Array | None], tuple[Array, Array | None]]


def compile_score(run: RunConfig, backend: Backend, mesh: Mesh | None) -> Score:
    """Make the program that takes log-probabilities of rows: parameters, tokens, segments, routes.

    tokens, segments [B, T], routes [B, L, T, K] or None -> [B, T], 0 at the first position and at
    padding, and the routers' own choice [L, B, T - 1, K], None without experts.
    """
    forward = dataclasses.replace(backend, remat=keep_all, unroll=1, keep_routes=True)
    cfg, specs = run.model, transformer.specs(run.model)

    def score(p: TransformerParams, tokens: Array, segments: Array,
              routes: Array | None) -> tuple[Array, Array | None]:
        p = backend.layout.gather_params(p, specs)
        if routes is not None:
            routes = jnp.moveaxis(routes[:, :, :-1], 1, 0)
        made = transformer.hidden(p, tokens[:, :-1], segments[:, :-1], cfg, forward, routes=routes)
        found, _ = token_losses.logprobs(made.x, p.head, tokens[:, 1:], forward.loss_chunk,
                                         forward.loss_dtype)
        found = jnp.where(segments[:, 1:] != 0, found, 0.0)
        own = None if made.stats is None else made.stats.experts
        return jnp.pad(found, ((0, 0), (1, 0))), own

    return jax.jit(score, out_shardings=None if mesh is None else meshes.sharding(mesh))


def known(score: Score, p: TransformerParams, reference: TransformerParams | None,
          rollout: Rollout, mesh: Mesh | None) -> Known:
    """Take the trainer's log-probabilities of a rollout and compare them with the engine's."""
    rows: Rows = {"tokens": rollout.tokens, "segments": rollout.real.astype(np.int32),
                  "weights": rollout.mask.astype(np.float32)}
    if rollout.routes is not None:
        rows["routes"] = rollout.routes
    batch = sharding.put_rows(rows, mesh)
    asked = batch.tokens, batch.segments, batch.routes
    old, own = jax.device_get(score(p, *asked))
    behind = None if reference is None else np.asarray(jax.device_get(score(reference, *asked)[0]))
    compared = mismatch.statistics(jnp.asarray(old), jnp.asarray(rollout.engine),
                                   jnp.asarray(rollout.mask))
    return Known(old, behind, compared, _equal_routes(rollout, own))


def _equal_routes(rollout: Rollout, own: np.ndarray | None) -> float:
    """Share of equal sets of experts, over tokens that the engine ran."""
    if rollout.routes is None or own is None:
        return float("nan")
    taken = np.sort(np.moveaxis(rollout.routes[:, :, :-1], 1, 0), axis=-1)
    is_equal = (taken == np.sort(own, axis=-1)).all(axis=-1)
    return float(is_equal[:, rollout.real[:, 1:]].mean())  # of tokens with one after them


def parts(rollout: Rollout, found: Known, count: int) -> Iterator[tuple[Rollout, Known]]:
    """Cut a rollout into equally many groups for each of `count` updates."""
    each = len(rollout.problems) // count
    for start in range(0, len(rollout.problems), each):
        here = slice(start, start + each)
        yield (rollout if count == 1 else rollout.rows(here)), dataclasses.replace(
            found, old=found.old[here],
            reference=None if found.reference is None else found.reference[here])


def clipped(rollout: Rollout, found: Known, now: np.ndarray, cfg: RLConfig) -> float:
    """Share of output tokens whose surrogate has no gradient; now [B, T] by the policy as it is."""
    advantages = _advantages(rollout, cfg)[:, None]
    new, old, mask = map(jnp.asarray, (now, found.old, rollout.mask))
    rho = ratio.token_ratio(new, old)
    if cfg.ratio == "sequence":
        rho = jnp.broadcast_to(ratio.sequence_ratio(new, old, mask), rho.shape)
    is_clipped = ratio.is_clipped(rho, advantages, cfg.clip_low, cfg.clip_high)
    return float(np.asarray(is_clipped)[rollout.mask].mean())


def rows_of(rollout: Rollout, found: Known, now: np.ndarray, cfg: RLConfig) -> Rows:
    """Make the rows of an update; those of which nothing counts weigh 0.

    now [B, T]: log-probabilities by the policy as it is, those of `found` at the first update.
    """
    rewards, groups, mask = map(jnp.asarray, (rollout.rewards, rollout.groups, rollout.mask))
    is_constant = advantage.constant_groups(rewards, groups)
    counted = weights.counted(mask, jnp.asarray(rollout.is_truncated), is_constant)
    if cfg.aggregation == "token":
        share = weights.token_mean(counted)
    elif cfg.aggregation == "sequence":
        share = weights.sequence_mean(counted)
    else:
        share = weights.constant_length(counted, cfg.max_new_tokens)
    old, engine = jnp.asarray(found.old), jnp.asarray(rollout.engine)
    extra = {"old": old, "share": share * counted.sum().astype(share.dtype),
             "advantages": _advantages(rollout, cfg)[:, None]}
    if cfg.kl_weight:
        assert found.reference is not None, "a KL has a reference"
        extra["reference"] = jnp.asarray(found.reference)
    if cfg.correction == "token":
        extra["factor"] = mismatch.token_weights(old, engine, cfg.correction_most)
    elif cfg.correction == "sequence":
        extra["factor"] = mismatch.sequence_weights(old, engine, mask, cfg.correction_most)
    else:
        extra["factor"] = jnp.ones(mask.shape)
    if cfg.ratio == "sequence":
        extra["sequence"] = ratio.sequence_ratio(jnp.asarray(now), old, mask)
    rows: Rows = {"tokens": rollout.tokens, "segments": rollout.real.astype(np.int32),
                  "weights": np.asarray(counted, np.float32)}
    rows |= {name: np.array(np.broadcast_to(np.asarray(a, np.float32), mask.shape))
             for name, a in extra.items()}
    if rollout.routes is not None and cfg.replay_routes:
        rows["routes"] = rollout.routes
    return rows


def extra_of(cfg: RLConfig) -> tuple[str, ...]:
    """Names of what the rows of an update have beside those of pre-training, [B, T] each."""
    named = {"old": True, "share": True, "advantages": True, "reference": bool(cfg.kl_weight),
             "factor": True, "sequence": cfg.ratio == "sequence"}
    return tuple(name for name, is_there in named.items() if is_there)


def _advantages(rollout: Rollout, cfg: RLConfig) -> Array:
    """Advantage of each output, [B]."""
    of = advantage.group_relative if cfg.advantage == "relative" else advantage.group_centered
    return of(jnp.asarray(rollout.rewards), jnp.asarray(rollout.groups))
