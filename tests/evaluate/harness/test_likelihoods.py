"""A likelihood is that of the model's logits, in the order of the requests, each token once."""

import itertools

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs pip install '.[lm-eval]'")

from lm_eval.api.model import CacheHook, CachingLM

from dsjax.errors import UserError
from dsjax.evaluate.harness.model import DsjaxLM
from dsjax.model import transformer
from tests.agreement import compiled
from tests.evaluate import small
from tests.evaluate.harness.asked import CONTEXT, asked, likelihoods

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's and its libraries' own

PAIRS = [("Question: what is", " the answer?"), ("", "Answer: it is 12"), ("of 30, or ", "42"),
         ("x" * 900, " or #### 42."), ("what is the answer", "?"), ("é\n\t ", "ü")]


def reference(lm, context, continuation):
    """Log-probability and greediness from whole logits, without rows, shapes or the harness."""
    words, kept = lm.model.tokenizer, context.rstrip()
    ids = words.prompt(context + continuation)
    first = len(words.prompt(kept))
    if not context:
        ids, first = [words.end_id, *ids], 1  # this tokenizer has no begin token
    gone = max(len(ids) - (CONTEXT + 1), 0)
    ids, first = np.array(ids[gone:]), first - gone
    run = compiled(lambda p, t: jax.nn.log_softmax(transformer.logits(p, t, lm.model.cfg)))
    logprobs = np.asarray(run(lm.model.params, ids[None, :-1]), np.float64)[0, first - 1:]
    wanted = ids[first:]
    return (logprobs[np.arange(len(wanted)), wanted].sum(),
            bool((logprobs.argmax(-1) == wanted).all()))


def test_a_likelihood_is_that_of_the_logits_and_a_long_context_is_cut_from_the_left(lm, capsys):
    found = lm.loglikelihood(likelihoods(*PAIRS), disable_tqdm=True)
    for (logprob, is_greedy), pair in zip(found, PAIRS, strict=True):
        wanted, is_likeliest = reference(lm, *pair)
        assert logprob == pytest.approx(wanted, abs=2e-5)
        assert is_greedy == is_likeliest
    assert "1 of 6 requests were longer than the context and cut from the left" in (
        capsys.readouterr().err)


def test_answers_keep_the_order_of_the_requests_however_tasks_are_mixed(lm, monkeypatch):
    alone = lm.loglikelihood(likelihoods(*PAIRS), disable_tqdm=True)
    others = likelihoods(*[(f"{i}", f" {i}") for i in range(len(PAIRS))], task="b")
    mixed = [one for pair in zip(others, likelihoods(*PAIRS), strict=True) for one in pair]
    laid_out, stream = [], lm.scorer.stream

    def spy(texts):
        laid_out.append(len(texts))
        return stream(texts)

    monkeypatch.setattr(lm.scorer, "stream", spy)
    found = lm.loglikelihood(mixed, disable_tqdm=True)
    assert laid_out == [6, 6], "a row's place in a batch may change its last bits"
    assert found[1::2] == alone, "bits depend on another task"
    assert lm.loglikelihood(likelihoods(*PAIRS[::-1]), disable_tqdm=True)[::-1] == [
        (pytest.approx(logprob, abs=2e-5), is_greedy) for logprob, is_greedy in alone]


def test_what_was_scored_before_a_stop_is_in_the_harnesss_cache(lm, tmp_path, monkeypatch):
    stream = lm.scorer.stream
    monkeypatch.setattr(lm.scorer, "stream", lambda texts: itertools.islice(stream(texts), 4))
    kept = CachingLM(lm, str(tmp_path / "kept.db"))
    try:
        with pytest.raises(KeyError):
            kept.loglikelihood(likelihoods(*PAIRS))
        assert len(kept.dbdict) == 4
    finally:
        lm.set_cache_hook(CacheHook(None))
        kept.dbdict.close()


def test_a_layout_changes_nothing_but_rounding(lm, run):
    spread = DsjaxLM(folder=str(run), context=CONTEXT, data=2, expert=2)
    found = spread.loglikelihood(likelihoods(*PAIRS[:3]), disable_tqdm=True)
    for one, other in zip(found, lm.loglikelihood(likelihoods(*PAIRS[:3]), True), strict=True):
        assert one[0] == pytest.approx(other[0], abs=2e-5)
        assert one[1] == other[1]


def test_the_greedy_continuation_is_said_to_be_greedy(lm):
    start = tuple(lm.tok_encode("Question:"))
    ids = list(start)
    run = compiled(lambda p, t: transformer.logits(p, t, lm.model.cfg))
    padded = np.zeros((1, len(start) + 6), np.int32)
    for _ in range(6):
        padded[0, : len(ids)] = ids
        logits = np.asarray(run(lm.model.params, padded))[0, len(ids) - 1]
        ids.append(int(logits[: lm.model.tokenizer.vocab].argmax()))
    made = ids[len(start):]
    wrong = [*made[:2], (made[2] + 1) % 256, *made[3:]]
    found = lm._loglikelihood_tokens([(None, list(start), made), (None, list(start), wrong)],
                                     disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_a_whole_text_is_scored_in_windows_that_name_every_token_once(run, monkeypatch):
    lm = DsjaxLM(folder=str(run), context=32)
    texts = ["Question: what is the answer?\n" * 9, "", "it", small.TEXT]
    windows, inner = [], lm._loglikelihood_tokens

    def spy(requests, disable_tqdm=False):
        windows.append(requests)
        return inner(requests, disable_tqdm)

    monkeypatch.setattr(lm, "_loglikelihood_tokens", spy)
    found = lm.loglikelihood_rolling(
        [asked("loglikelihood_rolling", text) for text in texts], disable_tqdm=True)
    (made,) = windows
    ids = [id for text in texts for id in lm.tok_encode(text)]
    assert [id for _, _, continuation in made for id in continuation] == ids
    assert all(len(before) + len(after) <= 33 for _, before, after in made)
    assert [made[0][1], len(made[0][2])] == [[lm.prefix_token_id], 32]
    assert found[1] == 0
    assert found[2] == inner([(None, [lm.prefix_token_id], lm.tok_encode("it"))], True)[0][0]


@pytest.mark.parametrize(("pairs", "said"), [
    ([("a", "")], "item 0 of a asks for the likelihood of an empty text"),
    ([("a", "b " * 900)], "the context is 512; give context="),
    ([("  ", "a")], "0 tokens of context")])
def test_requests_that_cannot_be_scored_are_refused(lm, pairs, said):
    with pytest.raises(UserError, match=said):
        lm.loglikelihood(likelihoods(*pairs), disable_tqdm=True)
