"""The text of the phases tells codes as often as it says, and never reads what is kept apart."""

import itertools
import json

import pytest

from dsjax.evaluate.long.heat import Cell
from dsjax.evaluate.long.needles import SIGNS
from experiments.common.record import ROOT
from experiments.long_context import ahead, needles, phases, text


def kept(name):
    return json.loads((ROOT / f"experiments/long_context/records/{name}.json").read_text())


def by_row(name):
    """A record's rows by their first cells, as the columns call them."""
    found = kept(name)
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]



@pytest.mark.parametrize("times", [1, 3])
def test_a_document_tells_one_code_so_many_times(times):
    for made in itertools.islice(text.documents(5, 20, 128, times), 20):
        codes = [c for c in made if c in "".join(SIGNS)]
        assert made.count("The secret code is") == times
        assert len(codes) == 2 * times
        assert len(set(codes)) == 2
        assert len(made) == int(128 * text.CHARACTERS)


def test_no_document_is_of_a_play_that_is_kept_apart():
    trained, apart = text.plays()
    assert len(apart) == text.HELDOUT
    assert not set(trained) & set(apart)
    for made in text.documents(5, 30, 400, 1):
        stretch = max(made.split("\nThe secret code is"), key=len)[7:]
        assert any(stretch in work for work in trained)
        assert not any(stretch in work for work in apart)


def test_phases_differ_in_their_rows_and_take_as_many_tokens_a_step(tmp_path):
    first, second = (phases.config(phase, tmp_path / phase.name, tmp_path, True)
                     for phase in phases.PHASES[1:])
    assert first.model == second.model == phases.model_config(is_stretched=True)
    assert (first.train.seq_len, second.train.seq_len) == (1024, 4096)
    assert first.train.batch_size * 1024 == second.train.batch_size * 4096
    assert first.learning_rate == second.learning_rate


def test_the_table_of_needles_is_what_its_cells_say():
    record = kept("needles")
    found = {name: tuple([Cell(**{"written": 0.0, **cell}) for cell in of[name]]
                         for of in (record["cells"], record["written"]))
             for name in record["cells"]}
    lengths = [int(name.replace(",", "")) for name in record["columns"][2:]]
    assert needles.table(found, lengths) == record["rows"]
    for name, own in record["cells"].items():
        assert len(own) == len(lengths) * len(needles.GRID.depths), name


def test_what_the_page_says_of_the_loss_is_what_was_measured():
    nats = kept("phases")["nats"]
    for row in kept("phases")["rows"]:
        assert row[3:] == [f"{one:.2f}" for one in nats[row[0]]]
    before, switched, last = (nats[name] for name in ("128", "128, YaRN switched on",
                                                      "after 4,096"))
    beyond = [i for i, edge in enumerate(phases.EDGES) if edge >= 128]
    assert min(before[i] for i in beyond) > before[0] + 1
    assert all(last[i] < switched[i] < before[i] for i in beyond)
    assert last[-1] < last[0]
    assert switched[0] > before[0]


def test_what_the_page_says_of_costs_is_what_was_measured():
    above = [float(row["MB above its start"]) for row in by_row("memory")
             if row["pass"] == "forward and backward"]
    assert above[-1] < 4 * above[0], "four times the tokens"
    longest = max(kept("prompt")["cases"].values(), key=lambda case: case["prompt"])
    assert longest["prompt"] + longest["new"] == 131_072
    assert longest["cache"] == 1280 * 131_072
    cases = list(kept("ahead")["cases"].values())
    needed = [(ahead.estimate(cases, case), case["limit"]) for case in cases]
    assert [size < limit for size, limit in needed if size is not None] == [True, True]
    for case in cases:
        assert case["compiled"]
        assert case["whole"]["pages and slots"] > 131_072 * 70_272, "bfloat16 latents of 61 layers"


def test_the_need_of_all_layers_goes_on_as_from_the_fewer_to_the_more():
    def case(layers, temporaries, machine="a"):
        return {"config": "deepseek_v3", "machine": machine, "layers": layers,
                "parts": {ahead.KINDS[2]: temporaries}, "whole": {"weights": 100, "pages": 10}}

    five, seven, other = case(5, 8), case(7, 14), case(3, 1, "b")
    assert ahead.estimate([five, seven, other], five) is None
    assert ahead.estimate([five, seven, other], seven) == 110 + 14 + 54 * 3
    assert ahead.estimate([case(5, 9), case(7, 8)], case(7, 8)) == 110 + 8, "never less"
