"""Sentences that a function says of its arguments name the flags they were typed as."""

import pytest

from dsjax.config.flags import refusal
from dsjax.data.tokenizers.tokenizer import train_bpe
from dsjax.errors import UserError
from dsjax.infer import Sampling


@pytest.mark.parametrize(("make", "flags", "typed"), [
    (lambda: Sampling(top_p=0.0), ["top_p"], "--top-p 0.0 is not a share"),
    (lambda: Sampling(max_new_tokens=0), ["max_new_tokens"],
     "--max-new-tokens 0 generates nothing"),
    (lambda: Sampling(temperature=-1.0), ["temperature"], "--temperature -1.0 is not"),
    (lambda: train_bpe(["a"], 100), ["vocab"], "--vocab 100 is below 256"),
    (lambda: train_bpe(["a"], 100), ["model.vocab"], "--model.vocab 100 is below 256"),
])
def test_arguments_are_named_as_flags_where_a_command_is_typed(make, flags, typed):
    with pytest.raises(UserError) as python:
        make()
    assert "--" not in str(python.value)
    with pytest.raises(UserError, match=f"^{typed}"), refusal.typed_as(*flags):
        make()


def test_only_fields_that_the_flags_have_are_renamed():
    flags = {"A.one": "--a.one", "A.is_on": "--a.is-on", "B.two": "--b.two"}
    for said, typed in [
        ("A.one=1 and two=2 differ", "--a.one 1 and two=2 differ"),
        ("B.two=2 exceeds B.two; choose two from [1]", "--b.two 2 exceeds B.two; choose --b.two "
         "from [1]"),
        ("A.one=1 is lone; use is_on=False, not is_on=True", "--a.one 1 is lone; use --a.no-is-on, "
         "not --a.is-on"),
        ("C.one=1 stays, as one=1 does", "C.one=1 stays, as one=1 does"),
    ]:
        assert refusal.as_typed(said, flags) == typed
