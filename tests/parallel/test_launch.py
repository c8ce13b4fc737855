"""A process finds its fellows from flags or from what its launcher says, and refuses half of it."""

import pytest

from dsjax.errors import UserError
from dsjax.parallel.launch import Launch, all_gpus, find

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}
OPEN_MPI_5 = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1",
              "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-1@1"}


def test_a_process_alone_joins_nobody():
    assert find({}) is None
    assert find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert find({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert find({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_flags_come_before_the_environment_and_that_before_the_launcher():
    env = SLURM | {"DSJAX_COORDINATOR": "a:1", "DSJAX_PROCESSES": "2", "DSJAX_PROCESS": "0"}
    assert find(env, "b:2", "3", "2") == Launch("flags", "b:2", 3, 2)
    assert find(env) == Launch("environment", "a:1", 2, 0)
    assert find(SLURM) == Launch("Slurm")


def test_launchers_that_jax_reads_are_left_to_it():
    old = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3"}
    assert find(old) == Launch("Open MPI")
    assert find({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == Launch("TPU pod")


def test_a_process_alone_on_its_host_takes_all_its_gpus():
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    alone = SLURM | gpus | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}
    assert find(alone) == Launch("Slurm", gpus=(0, 1, 2))
    for others in ("4(x2)", "2,1", "11(x4)", "1(x3),2"):
        assert find(alone | {"SLURM_STEP_TASKS_PER_NODE": others}) == Launch("Slurm")
    mpi = OPEN_MPI_5 | gpus | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3"}
    assert find(mpi) == Launch("Open MPI")
    assert find(mpi | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}) == Launch("Open MPI", gpus=(0, 1, 2))


def test_gpus_are_counted_where_nothing_hides_them(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert all_gpus({}, tmp_path) == (0, 1)
    assert all_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) is None
    (tmp_path / "nvidia0").unlink()
    (tmp_path / "nvidia1").unlink()
    assert all_gpus({}, tmp_path) is None


def test_open_mpi_5_on_one_node_agrees_on_a_port():
    found = [find(OPEN_MPI_5 | {"OMPI_COMM_WORLD_RANK": rank}) for rank in "01"]
    assert [f.process for f in found] == [0, 1]
    assert found[0].coordinator == found[1].coordinator
    other = find(OPEN_MPI_5 | {"PMIX_NAMESPACE": "prterun-a-2@1"})
    assert other.coordinator != found[0].coordinator


def test_open_mpi_5_on_several_nodes_wants_the_coordinator():
    with pytest.raises(UserError, match="add --coordinator HOST:PORT"):
        find(OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize(("given", "words"), [
    (("a:1", "2", None), "need all of --coordinator, --processes, --process"),
    (("a", "2", "0"), "a is not HOST:PORT"),
    (("a:1", "2", "2"), "from 0 below --processes 2"),
])
def test_half_an_answer_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        find({}, *given)
