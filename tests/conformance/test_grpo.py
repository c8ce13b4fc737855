"""Advantages, losses and their gradients are trl's and verl's, on the same arrays in float64.

tests/golden/grpo.json holds what the libraries say; where one is installed it is asked again.
"""

import importlib.metadata
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsjax.rl.objective import advantage, loss, mismatch, ratio, weights
from dsjax.rl.objective.loss import Objective
from tests.golden import make_grpo
from tests.golden.make_grpo import BETA, HIGH, LIMIT, LOW, MOST, THRESHOLD

EPS = {"trl": 1e-4, "verl": 1e-6}
GOLDEN = json.loads(make_grpo.PATH.read_text())
VERSIONS = {"trl": "1.16", "verl": "0.9"}
RTOL = 1e-11
"""Float64 on both sides, sums of tens of numbers."""
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
LIBRARIES = pytest.mark.parametrize("library", ["trl", "verl"])
CASES = [(library, case) for library in EPS for case in GOLDEN[library]["losses"]]


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def close(ours, theirs, rtol=RTOL):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=1e-14)


def given():
    return {name: jnp.asarray(values) for name, values in make_grpo.arrays().items()}


@LIBRARIES
def test_advantages(library):
    a, said = given(), GOLDEN[library]
    found = advantage.group_relative(a["rewards"], a["groups"], eps=EPS[library])
    close(found, said["relative"])
    close(advantage.group_centered(a["rewards"], a["groups"]), said["centered"])


@LIBRARIES
def test_importance_weights(library):
    a, said = given(), GOLDEN[library]
    mask = np.asarray(a["mask"])
    tokens = np.asarray(mismatch.token_weights(a["old"], a["engine"], MOST))
    close(tokens[mask], np.array(said["token_weights"])[mask])
    theirs = np.array(said["sequence_weights"])[:, :1]
    close(mismatch.sequence_weights(a["old"], a["engine"], a["mask"], MOST), theirs)
    assert (tokens[mask] == MOST).any()  # the truncation shows
    assert (theirs < MOST).any()


def test_statistics_and_off_policy_masks():
    a = given()
    found = mismatch.statistics(a["old"], a["engine"], a["mask"])
    # verl adds 1e-8 to the count of tokens.
    close(found.kl, GOLDEN["verl"]["statistics"]["kl"], 1e-8)
    close(found.k3, GOLDEN["verl"]["statistics"]["k3_kl"], 1e-8)
    advantages = advantage.group_relative(a["rewards"], a["groups"])
    kept = mismatch.is_on_policy(a["new"], a["engine"], advantages, a["mask"], THRESHOLD)
    assert kept.tolist() == [bool(one) for one in GOLDEN["trl"]["is_on_policy"]]
    assert not kept.all()
    assert kept[advantages < 0].any()


def ours(library, case):
    """Loss and gradient by dsjax, of a case by its name."""
    a = given()
    advantages = advantage.group_relative(a["rewards"], a["groups"], eps=EPS[library])
    known = {"old": a["old"], "advantages": advantages, "reference": a["reference"]}
    kind = "sequence" if case == "sequence ratio" else "token"
    aggregation, kl = ("sequence_mean", "none" if kind == "sequence" else "k3")
    if case.split()[0] in make_grpo.MODES:
        aggregation, kl = case.split()[:2]
    mask = a["mask"]
    if case.endswith("cut"):
        is_cut = jnp.arange(6) == 2
        mask = weights.counted(mask, is_cut, jnp.zeros(6, bool))
    if case == "off-policy":
        kept = mismatch.is_on_policy(a["new"], a["engine"], advantages, mask, THRESHOLD)
        known["factor"] = kept.astype(jnp.float64)
    if case.endswith("weights"):
        known["factor"] = (mismatch.token_weights(a["old"], a["engine"], MOST)
                           if case.startswith("token") else
                           mismatch.sequence_weights(a["old"], a["engine"], mask, MOST))
    if kind == "sequence":
        known["sequence"] = ratio.sequence_ratio(a["new"], a["old"], mask)
    made = {"token_mean": weights.token_mean, "sequence_mean": weights.sequence_mean,
            "constant_length": lambda mask: weights.constant_length(mask, LIMIT)}[aggregation](mask)
    cfg = Objective(LOW, HIGH, 0.0 if kl == "none" else BETA,
                    "unbiased" if kl == "unbiased" else "k3", kind)
    ids = jnp.zeros(mask.shape, jnp.int32)

    def value(new):
        return loss.token_loss(cfg)(new, loss.targets(ids, made, **known)).sum()
    return jax.value_and_grad(value)(a["new"])


@pytest.mark.parametrize(("library", "case"), CASES)
def test_losses_and_gradients(library, case):
    said = GOLDEN[library]["losses"][case]
    value, gradient = ours(library, case)
    # verl adds 1e-8 to the length of an output, where it divides by that.
    rtol = 2e-8 if library == "verl" and case.startswith("sequence") else RTOL
    close(value, said["loss"], rtol)
    close(gradient, said["gradient"], rtol)


def test_the_cases_are_told_apart():
    """Losses of one library are all different, so that a choice that is ignored shows."""
    for library in EPS:
        said = [round(one["loss"], 9) for one in GOLDEN[library]["losses"].values()]
        assert len(set(said)) == len(said)


@LIBRARIES
def test_the_golden_numbers_are_what_the_library_says_now(library):
    if missing := [one for one in ("torch", library) if importlib.util.find_spec(one) is None]:
        pytest.skip(f"needs {' and '.join(missing)} (trl 1.16, verl 0.9)")
    assert importlib.metadata.version(library).rsplit(".", 1)[0] == VERSIONS[library]
    flat, kept = (jax.tree.leaves(one) for one in (getattr(make_grpo, library)(), GOLDEN[library]))
    close(flat, kept, 1e-12)
