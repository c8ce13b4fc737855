"""What rows ask for is data: a hundred requests with a hundred temperatures are one program."""

import dataclasses

import pytest

from dsjax.infer import Options, Sampling, generate
from dsjax.model import transformer
from tests import agreement

CFG = dataclasses.replace(agreement.TINY, layers=1, dense_layers=1, moe=None, mtp_depth=1,
                          attention=agreement.GQA)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8]]


@pytest.mark.parametrize("is_drafting", [False, True])
def test_another_temperature_share_or_length_compiles_nothing(compiles, is_drafting):
    p, options = agreement.draw(transformer.specs(CFG), 2), Options(draft=is_drafting)
    requests = [Sampling(temperature=0.01 * i, top_p=1 - 0.005 * (i % 7), max_new_tokens=2 + i % 5,
                         seed=i, vocab=None if i % 3 else 9, stop_ids=(i % 11,))
                for i in range(102)]

    def batch(first):
        return generate(p, CFG, PROMPTS, requests[first : first + 3], options).completions

    batch(0)
    assert compiles
    compiles.clear()
    made = [row for first in range(3, 102, 3) for row in batch(first)]
    assert not compiles
    assert len({row.tokens for row in made}) > 50


@pytest.mark.parametrize("is_drafting", [False, True])
def test_greedy_rows_among_sampled_ones_are_as_they_are_among_greedy_ones(is_drafting):
    p, options = agreement.draw(transformer.specs(CFG), 2), Options(draft=is_drafting)
    rows = [Sampling(temperature=0, max_new_tokens=9), Sampling(1.3, 0.9, max_new_tokens=7),
            Sampling(temperature=0, vocab=6, max_new_tokens=4)]
    mixed = generate(p, CFG, PROMPTS, rows, options).completions
    for i, row in enumerate(rows):
        assert generate(p, CFG, PROMPTS, row, options).completions[i] == mixed[i]
