"""Speculative sampling: drafted tokens are accepted so that the output keeps the target's law.

Leviathan et al., arXiv 2211.17192, as the V3 report section 5.4.3 uses it. V vocabulary, J drafts.
"""

import numpy as np

Array = np.ndarray


def acceptance(target: Array, draft: Array, token: int) -> float:
    """min(1, p/q) of a token drawn from `draft` q [V] under `target` p [V]."""
    return min(1.0, float(target[token] / draft[token]))


def residual(target: Array, draft: Array) -> Array:
    """max(p - q, 0), normalized; the target itself where the two agree and nothing is rejected."""
    excess = np.maximum(target - draft, 0.0)
    mass = np.sum(excess)
    return excess / mass if mass > 0 else np.array(target)


def emitted_distribution(target: Array, draft: Array) -> Array:
    """Law of the emitted token, by summing over all drafts; equals the target."""
    emitted = np.zeros(len(target))
    rejected = 0.0
    for token in np.flatnonzero(draft):
        accepted = acceptance(target, draft, token)
        emitted[token] += draft[token] * accepted
        rejected += draft[token] * (1 - accepted)
    return emitted + rejected * residual(target, draft)


def verify(targets: Array, drafts: Array, tokens: Array, uniforms: Array) -> tuple[int, Array]:
    """Number of drafted tokens [J] accepted, and the law [V] of the token that follows them.

    targets [J+1, V], drafts [J, V]; draft j is accepted when uniforms[j] < min(1, p/q), and the
    first rejection ends the run. With all accepted the next token follows targets[J].
    """
    for j, token in enumerate(tokens):
        if uniforms[j] >= acceptance(targets[j], drafts[j], token):
            return j, residual(targets[j], drafts[j])
    return len(tokens), np.array(targets[len(tokens)])
