"""The text of the phases tells codes as often as it says, and never reads what is kept apart."""

import itertools
import json

import pytest

from dsjax.evaluate.long.heat import Cell
from dsjax.evaluate.long.needles import SIGNS
from experiments.common.record import ROOT
from experiments.long_context import needles, phases, text

RECORD = ROOT / "experiments/long_context/records/needles.json"


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
    kept = json.loads(RECORD.read_text())
    found = {name: tuple([Cell(**{"written": 0.0, **cell}) for cell in of[name]]
                         for of in (kept["cells"], kept["written"]))
             for name in kept["cells"]}
    lengths = [int(name.replace(",", "")) for name in kept["columns"][2:]]
    assert needles.table(found, lengths) == kept["rows"]
    for name, own in kept["cells"].items():
        assert len(own) == len(lengths) * len(needles.GRID.depths), name
