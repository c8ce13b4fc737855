"""lm-evaluation-harness gets the same from dsjax and from its `hf` model; needs torch and lm-eval.

`pip install .[conformance,lm-eval]`. The model is a run here, and there the checkpoint that `dsjax
convert dsjax-to-hf` makes of it.
"""

import dataclasses

import pytest

pytest.importorskip("torch", reason="needs pip install '.[conformance,lm-eval]'")
pytest.importorskip("transformers", reason="needs pip install '.[conformance,lm-eval]'")
pytest.importorskip("accelerate", reason="needs pip install '.[conformance,lm-eval]'")
pytest.importorskip("lm_eval", reason="needs pip install '.[conformance,lm-eval]'")

from lm_eval.models.huggingface import HFLM

from dsjax.cli.main import main
from dsjax.evaluate.harness.model import DsjaxLM
from tests.evaluate import small
from tests.evaluate.harness.asked import CONTEXT, NAMES, ask, place

BOUND = 1e-4  # of a log-likelihood; the softmax there is float64, as sums are here
# Released code norms latents with 1e-6 whatever a config says, and may write ids beyond the
# tokenizer's 290, which are never written here.
CFG = dataclasses.replace(small.CFG, vocab=290, attention=dataclasses.replace(
    small.CFG.attention, latent_norm_eps=1e-6))
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and the harness's own


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The adapter on a run, and the harness's own model on the run's exported checkpoint."""
    folder = tmp_path_factory.mktemp("both")
    run = small.make_run(folder / "run", cfg=CFG)
    assert main(["convert", "dsjax-to-hf", str(run), str(folder / "hf")]) == 0
    theirs = HFLM(str(folder / "hf"), dtype="float32", device="cpu", max_length=CONTEXT,
                  batch_size=4, softmax_dtype="float64", attn_implementation="eager",
                  experts_implementation="eager")
    return DsjaxLM(folder=str(run), context=CONTEXT), theirs


def requests(found, name):
    """Answers to the requests of a task, in order, each once."""
    samples = {one["doc_id"]: one for one in found["samples"][f"local_{NAMES[name]}"]}
    return [answer for i in sorted(samples) for one in samples[i]["resps"] for answer in one]


def test_both_give_the_same_likelihoods_and_the_same_greedy_texts(both, tmp_path, monkeypatch):
    place(tmp_path, monkeypatch)
    ours, theirs = (ask(lm, NAMES, gen_kwargs={"max_gen_toks": 48}) for lm in both)
    compared = 0
    for name in NAMES:
        for one, other in zip(requests(ours, name), requests(theirs, name), strict=True):
            if name == "gsm8k":
                assert one == other
            elif name == "text":
                assert one == pytest.approx(other, abs=BOUND, rel=1e-6)
            else:
                assert one[0] == pytest.approx(other[0], abs=BOUND, rel=0)
                assert one[1] == other[1]
            compared += 1
    assert compared == 15 + 16 + 4 + 4 + 3
    for name in ("arc", "hellaswag", "lambada", "gsm8k"):
        results = [found["results"][f"local_{NAMES[name]}"] for found in (ours, theirs)]
        for key in results[0]:
            if key.startswith(("acc,", "acc_norm,", "exact_match,")):
                assert results[0][key] == results[1][key]


def test_both_read_texts_as_the_same_ids(both):
    ours, theirs = both
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    for text in ("what is", " 12 of\n30 ", "", "\u00e9\u4e2d", "<|end_of_text|>it",
                 "it<|fim_hole|>"):
        for special in (None, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special), text
