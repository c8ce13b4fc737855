"""Several processes train what one does, however they were started and however many they are.

The processes are real and talk over localhost; Open MPI and Slurm start them where installed.
"""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest

from dsjax.config.parallel import ParallelConfig
from dsjax.data.tokenizers.tokenizer import train_bpe
from dsjax.model import transformer
from dsjax.released import hf
from tests.train import crew, one_node
from tests.train.small_run import write_text

STEPS = 4
# Rounding of float32 sums, and of the bfloat16 moments that each may turn, as in test_spread.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder):
    """Train a model in one process on one device."""
    made = {}

    def run_of(model):
        if model not in made:
            name = f"alone{len(made)}"
            made[model] = crew.run_on(folder, name, ParallelConfig(), STEPS, model)
            crew.here(made[model])
        return made[model]

    return run_of


def same_curve(run, alone):
    np.testing.assert_allclose(crew.curve(run), crew.curve(alone), rtol=ROUNDING)
    (bits, tokens), (alone_bits, alone_tokens) = crew.heldout(run), crew.heldout(alone)
    assert tokens == alone_tokens
    assert bits == pytest.approx(alone_bits, rel=ROUNDING)


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/infer/test_processes.py reads a folder in two
def test_two_processes_begin_from_a_released_folder_and_one_goes_on(folder):
    """In FP8 codes, each process reading what its devices hold."""
    words = write_text(folder / "words.txt").read_text()
    hf.save(folder / "released", crew.MIXTURE, transformer.init(crew.MIXTURE, jax.random.key(3)),
            fp8=True)
    train_bpe([words], crew.MIXTURE.vocab).save(folder / "released" / "tokenizer.json")
    begin = dataclasses.replace(crew.run_on(folder, "begun_alone", ParallelConfig(), STEPS),
                                init_from=str(folder / "released"))
    crew.here(begin)
    run = dataclasses.replace(begin, output=crew.run_on(folder, "begun", ParallelConfig(),
                                                        STEPS).output)
    both = dataclasses.replace(run, parallel=ParallelConfig(data=2, expert=2))
    said = crew.finish(crew.start(crew.lasting(both, 2), 2))
    assert "starting from the parameters of" in said[0]
    assert "resuming after step 2" in crew.here(run)
    same_curve(run, begin)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "model"), [
    pytest.param("dense", ParallelConfig(data=4), crew.DENSE, marks=pytest.mark.exhaustive),
    pytest.param("mixture", ParallelConfig(data=2, expert=2), crew.AHEAD,
                 marks=pytest.mark.exhaustive),
])
def test_four_processes_train_what_one_does(name, layout, model, folder, alone):
    run = crew.run_on(folder, name, layout, STEPS, model)
    said = crew.finish(crew.start(run, 4))
    assert "4 of 4 devices" in said[0]
    for others in said[1:]:
        lines = [x for x in others.splitlines() if x and "peer ranks" not in x]
        assert len(lines) <= 6, lines  # gloo's greetings, torn where processes write at once
    same_curve(run, alone(model))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="Open MPI's mpirun is not installed")
def test_mpirun_says_where_the_coordinator_is(folder, alone):
    run = crew.run_on(folder, "mpi", ParallelConfig(data=2), STEPS, crew.DENSE)
    env = os.environ | crew.environment(run, 2)
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    command = ["mpirun", *as_root, "--oversubscribe", "-n", "2", *crew.words(run)]
    said = crew.finish([crew.open_process(command, env)])[0]
    assert "2 of 2 devices" in said
    same_curve(run, alone(run.model))


@pytest.mark.slow
@pytest.mark.skipif(not one_node.is_installed(), reason=one_node.MISSING)
def test_the_batch_script_trains_on_slurm(folder, alone, tmp_path):
    run = crew.run_on(folder, "slurm", ParallelConfig(data=2), STEPS, crew.DENSE)
    said = tmp_path / "said"
    here = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", f"--output={said}"]
    script, config = crew.ROOT / "launch" / "slurm.sh", crew.words(run)[-1]
    with one_node.cluster(tmp_path) as env:
        job = crew.open_process(["sbatch", "--wait", *here, str(script), config],
                                env | crew.environment(run, 2))
        answered = job.communicate(timeout=crew.PATIENCE_S)[0]
    assert job.returncode == 0, answered + said.read_text()
    assert "2 of 2 devices" in said.read_text()
    same_curve(run, alone(run.model))
