"""A process finds its peers from flags or from what its launcher says, and refuses half of it."""

import socket

import jax
import pytest

from dsjax.errors import UserError
from dsjax.parallel import launch, meet
from dsjax.parallel.launch import Launch, all_gpus, find

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
SLURM = JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[007-8,12],x1"}
OPEN_MPI_5 = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1",
              "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
              "PMIX_NAMESPACE": "prterun-a-1@1"}
OPEN_MPI_4 = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.0.0.1,10.1.0.1:3",
                           "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


def test_a_process_alone_joins_nobody():
    assert find({}) is None
    assert find(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert find({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert find({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_variables_that_are_empty_are_not_set():
    for name in ("DSJAX_COORDINATOR", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        assert find({name: "", "SLURM_PROCID": "0", "TPU_WORKER_HOSTNAMES": " "}) is None


@pytest.mark.parametrize("inside", [JOB, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_inside_an_allocation_but_not_under_srun_it_trains_alone_and_says_so(inside, capsys):
    assert find(inside) is None
    said = capsys.readouterr().err
    assert "4 tasks" in said
    assert "srun dsjax train" in said


def test_flags_come_before_the_environment_and_that_before_the_launcher():
    env = SLURM | {"DSJAX_COORDINATOR": "a:1", "DSJAX_PROCESSES": "2", "DSJAX_PROCESS": "0"}
    assert find(env, "b:2", 3, 2) == Launch("flags", "b:2", 3, 2)
    assert find(env) == Launch("environment", "a:1", 2, 0)
    assert find(SLURM) == Launch("Slurm", "n007:61447", 4, 1, (1,))
    found = find(SLURM | OPEN_MPI_5)  # mpirun inside an allocation
    assert found is not None
    assert found.source == "Open MPI"


@pytest.mark.parametrize(("nodes", "host"), [
    ("n[007-8,12],x1", "n007"), ("n[1,4]", "n1"), ("a-b2,c", "a-b2"), ("gpu-1.c,x", "gpu-1.c"),
    ("n7", "localhost"),  # one node needs no network
])
def test_slurm_names_the_first_node_of_the_step(nodes, host):
    found = find(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found is not None
    assert found.coordinator == f"{host}:61447"


def test_open_mpi_4_names_its_first_node_unless_all_are_here():
    assert find(OPEN_MPI_4) == Launch("Open MPI", "10.0.0.1:61442", 2, 1)
    six = {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fe80::1,2620::2]:3"}
    assert find(OPEN_MPI_4 | six) == Launch("Open MPI", "[fe80::1]:61442", 2, 1)
    here = OPEN_MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert find(here) == Launch("Open MPI", "localhost:61442", 2, 1, (1,))


def test_a_tpu_pod_is_left_to_jax():
    assert find({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == Launch("TPU pod")


def test_a_process_alone_on_its_host_takes_all_its_gpus():
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    alone = SLURM | gpus | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}

    def taken(env):
        found = find(env)
        assert found is not None
        return found.gpus

    assert taken(alone) == (0, 1, 2)
    for others in ("4(x2)", "2,1", "11(x4)", "1(x3),2"):
        assert taken(alone | {"SLURM_STEP_TASKS_PER_NODE": others}) == (1,)
    assert taken(OPEN_MPI_4 | gpus) == (0, 1, 2)


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
    (("", "2", "1"), "need all of"),
    (("a", "2", "0"), "a is not HOST:PORT"),
    (("::1:5", "2", "0"), "in brackets"),
    (("a b:1", "2", "0"), "HOST:PORT"),
    (("a:0", "2", "0"), "--coordinator a:0 has the port 0"),
    (("a:65536", "2", "0"), "65536"),
    (("a:99999999", "2", "0"), "a:99999999 has.*from 1 to 65,535"),
    (("a:\u0663", "2", "0"), "HOST:PORT"),
    (("a:1", "\u00b2", "0"), "--processes"),
    (("a:1", "0", "0"), "--processes 0"),
    (("a:1", "2", "-1"), "--process -1"),
    (("a:1", "2", "2"), "from 0 below --processes 2"),
    (("a:1", "9" * 5000, "2"), "--processes 999"),
])
def test_half_an_answer_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        find({}, *given)


@pytest.mark.parametrize(("env", "words"), [
    ({"DSJAX_COORDINATOR": "a:1"}, "need all of DSJAX_COORDINATOR, DSJAX_PROCESSES"),
    ({"DSJAX_COORDINATOR": "a:1", "DSJAX_PROCESSES": "x", "DSJAX_PROCESS": "0"}, "PROCESSES x"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK is not set"),
    ({"OMPI_COMM_WORLD_SIZE": "x"}, "OMPI_COMM_WORLD_SIZE is 'x'"),
    (OPEN_MPI_5 | {"OMPI_COMM_WORLD_RANK": "2"}, "the number 2 of 2"),
    (JOB | {"SLURM_NTASKS": "4(x2)"}, "SLURM_NTASKS is '4"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
    (SLURM | {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "x"}, "TPU_WORKER_ID"),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID=2"),
])
def test_variables_that_a_launcher_left_half_are_named(env, words):
    with pytest.raises(UserError) as caught:
        find(env)
    assert words in str(caught.value)


def bound(monkeypatch, coordinator, process=0, places=None):
    """The address at which JAX's coordinator would listen."""
    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **words: seen.update(words))
    monkeypatch.setattr(meet, "wait", lambda *given: seen.update(bind=given[-1]))
    if places is not None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (place, port)) for place in places])
    launch.join(Launch("flags", coordinator, 2, process))
    assert seen["bind"] == seen["coordinator_bind_address"]
    return seen["bind"]


def test_the_coordinator_listens_where_it_was_told_and_nowhere_else(monkeypatch, capsys):
    monkeypatch.delenv(launch.BIND, raising=False)
    for coordinator in ("127.0.0.1:5", "localhost:5", "[::1]:5", "10.1.2.3:5"):
        assert bound(monkeypatch, coordinator) == coordinator
    for name in ("LOCALHOST:5", "localhost.:5", "ip6-localhost:5", "localhost.localdomain:5"):
        assert bound(monkeypatch, name, places=["127.0.0.1"]) == name
    assert bound(monkeypatch, "node0:5", places=["10.1.2.3"]) == "node0:5"
    assert not capsys.readouterr().err
    # Debian's name of itself: others reach it elsewhere
    assert bound(monkeypatch, "node0:5", places=["127.0.1.1"]) in ("[::]:5", "0.0.0.0:5")
    assert "every interface" in capsys.readouterr().err
    assert bound(monkeypatch, "node0:5", process=1, places=["127.0.1.1"]) == "node0:5"
    monkeypatch.setenv(launch.BIND, "10.0.0.9:5")
    assert bound(monkeypatch, "node0:5") == "10.0.0.9:5"
