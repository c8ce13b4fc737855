"""Memory that is not there is refused before it is asked for, in a sentence one can follow."""

import dataclasses
import re
import resource

import jax
import jax.numpy as jnp
import pytest
from jax.errors import JaxRuntimeError

from dsjax import params, weights
from dsjax.checkpoint.store import Store
from dsjax.cli.main import main
from dsjax.config import load
from dsjax.config.flags import commandline
from dsjax.errors import UserError
from dsjax.infer import Options, Sampling, generate
from dsjax.model import transformer
from dsjax.parallel import mesh as meshes
from dsjax.runtime import fit, free_memory, needs
from dsjax.runtime.free_memory import Room
from dsjax.train import sharding
from tests import agreement

GB = 10**9
NO_GROUP = {"proc/self/cgroup": "0::/\n"}
MEMINFO = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\nSwapFree: 500000 kB\n"}


def system(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return free_memory.host(tmp_path)


@pytest.fixture
def free(monkeypatch):
    """Sets what is free here, in bytes."""
    def there(size):
        monkeypatch.setattr(free_memory, "host", lambda: Room(size, "available on this machine"))

    return there


def test_what_the_system_could_give_and_swap_is_free(tmp_path):
    assert system(tmp_path, MEMINFO | NO_GROUP) == Room(4_500_000 * 1024,
                                                        "available on this machine")
    assert system(tmp_path / "nowhere", {}) is None


def test_a_control_group_or_one_above_it_may_leave_less(tmp_path):
    """The second version: limits of the group and of those above; files it can drop are free."""
    top = "sys/fs/cgroup"
    found = system(tmp_path, MEMINFO | {
        "proc/self/cgroup": "0::/jobs/mine\n", f"{top}/jobs/mine/memory.max": "max\n",
        f"{top}/jobs/mine/memory.current": "1\n", f"{top}/jobs/memory.max": f"{2 * GB}\n",
        f"{top}/jobs/memory.current": f"{GB}\n",
        f"{top}/jobs/memory.stat": f"anon 7\ninactive_file {GB // 2}\nactive_file 3\n"
                                   "slab_reclaimable 4\n"})
    assert found.free == GB + GB // 2 + 7
    assert "2.0 GB of its control group" in found.whose


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    at = "sys/fs/cgroup/memory/docker/7"
    found = system(tmp_path, MEMINFO | {
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/7\n",
        f"{at}/memory.limit_in_bytes": f"{3 * GB}\n", f"{at}/memory.usage_in_bytes": f"{GB}\n",
        f"{at}/memory.stat": "total_inactive_file 5\nactive_file 1\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"})
    assert found.free == 2 * GB + 5


def test_limits_of_the_process_count_from_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (
        (GB, GB) if kind == resource.RLIMIT_AS else (resource.RLIM_INFINITY,) * 2))
    found = system(tmp_path, MEMINFO | NO_GROUP | {"proc/self/statm": "1000 5 0 0 0 9 0\n"})
    assert found.free == GB - 1000 * free_memory.PAGE
    assert "`ulimit -v`" in found.whose


def test_an_accelerator_says_what_it_has():
    class Device:
        platform, device_kind = "gpu", "NVIDIA H100"

        def __init__(self, said):
            self.said = said

        def memory_stats(self):
            return self.said

    found = free_memory.of([Device({"bytes_limit": 80 * GB, "bytes_in_use": GB})] * 2)
    assert (found.free, found.devices, found.is_host) == (79 * GB, 1, False)
    assert free_memory.of([Device(None)]) is None


RUN = commandline.override(load.load("tiny"), ["--optimizer.ema-decay", "0"])


@pytest.mark.parametrize("flags", [
    ["--train.seq-len", "100000"],
    ["--train.batch-size", "4096", "--precision", "bf16"],
    ["--optimizer.ema-decay", "0.9", "--optimizer.moments", "float32", "--machine.remat", "full",
     "--model.layers", "400"],
    ["--train.batch-size", "7", "--train.seq-len", "300000", "--machine.remat", "none"],
])
def test_what_surely_does_not_fit_is_refused_with_flags_that_save_what_they_say(flags, free):
    run = commandline.override(RUN, flags)
    counted = needs.training(run)
    size = counted.least + counted.average
    free(size + 1)
    fit.refuse_training(run, None, sharding.check)
    free(size - 1)
    with pytest.raises(UserError) as raised:
        fit.refuse_training(run, None, sharding.check)
    said = str(raised.value)
    assert f"needs at least {fit.said(size)} of memory" in said
    assert f"{fit.said(size - 1)} are available on this machine" in said
    assert f"{fit.said(counted.parts['activations'])} activations" in said
    assert "\n" not in said
    named = re.findall(r"(--[a-z.-]+) (\S+) saves at least ([\d.]+ \w+)", said)
    assert named
    for flag, value, saved in named:
        run = commandline.override(run, [flag, value])
        sharding.check(run)
        left = needs.training(run)
        assert fit.said(size - left.least - left.average) == saved
        size = left.least + left.average
    assert size < counted.least


def test_a_model_that_no_flag_makes_fit_says_what_is_left(free):
    free(20 * GB)
    with pytest.raises(UserError, match=r"masters.*the rest is still .* more memory.*smaller"):
        fit.refuse_training(load.load("moonlight_16b_a3b"), None, sharding.check)


def test_virtual_devices_share_the_memory_of_their_machine(free):
    run = commandline.override(RUN, ["--parallel.data", "8", "--train.batch-size", "16"])
    mesh = meshes.make_mesh(run.parallel)
    each = needs.training(run, mesh)
    assert each.masters < needs.training(run).masters / 7  # ZeRO-1 cuts all but norms
    free(8 * each.least - 1)
    with pytest.raises(UserError, match="on each of 8 devices"):
        fit.refuse_training(run, mesh, sharding.check)
    free(8 * each.least)
    fit.refuse_training(run, mesh, sharding.check)


@jax.jit
def wide(state, batch):
    """Works in 4 MB times the number of rows beside its state."""
    columns = jnp.sin(batch[:, None] * jnp.arange(10**6, dtype=batch.dtype)[None])
    return state + 1, (columns @ columns.T).sum()


def test_a_compiled_step_is_held_against_what_is_free_before_it_runs(free):
    """Each shape once, before it runs: what was free is then in use."""
    step = fit.checked(wide, RUN, None, sharding.check)
    state = jnp.zeros(())
    free(30 * 10**6)
    state, _ = step(state, jnp.ones(3))
    free(0)
    step(state, jnp.ones(3))
    free(30 * 10**6)
    with pytest.raises(UserError, match=r"works in \d\d.* MB of memory .* compiler .* 30.0 MB are"):
        step(state, jnp.ones(20))


@pytest.mark.parametrize("error", [MemoryError(), JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")])
def test_running_out_of_memory_is_said_as_what_was_needed_and_free(error, free):
    free(GB)
    with pytest.raises(UserError, match=r"ran out of memory: .* 1.0 GB are available.*saves"), \
            fit.explained(commandline.override(RUN, ["--train.seq-len", "4096"]), None,
                          sharding.check):
        raise error


def test_other_errors_of_a_run_stay_what_they_are(free):
    free(GB)
    with pytest.raises(JaxRuntimeError, match="INTERNAL"), fit.explained(RUN, None, sharding.check):
        raise JaxRuntimeError("INTERNAL: something else")


ABSURD = [("--model.d-model", 10**7), ("--model.d-model", 10**30), ("--model.vocab", 10**9),
          ("--model.layers", 10**9), ("--model.moe.experts", 10**9), ("--train.seq-len", 10**15),
          ("--train.batch-size", 10**9), ("--train.batch-size", 10**7),
          ("--model.mtp-depth", 10**6), ("--model.attention.heads", 10**9),
          ("--model.dense-dim", 2**31 - 1)]


@pytest.mark.parametrize(("flag", "value"), ABSURD)
def test_sizes_that_no_machine_has_are_a_sentence_at_once(flag, value, capsys, tmp_path, free):
    free(24 * GB)
    out = tmp_path / "out"
    assert main(["train", "tiny", "--output.folder", str(out), flag, str(value)]) == 2
    said = capsys.readouterr().err
    assert said.count("dsjax: ") == 1
    assert re.search("of memory|than any machine has|more than 63 bits|would never learn", said)
    assert not out.exists()


def test_a_batch_that_does_not_divide_is_a_sentence_at_once(capsys):
    flags = ["--train.batch-size", str(2**31 - 1), "--train.microbatches", "2"]
    assert main(["train", "tiny", *flags]) == 2
    assert "microbatches from [1, 2147483647]" in capsys.readouterr().err


def test_a_run_is_refused_before_its_folder_is_made(free, tmp_path, capsys):
    free(10**6)
    out = tmp_path / "out"
    assert main(["train", "tiny", "--output.folder", str(out)]) == 2
    assert "1.0 MB are available on this machine" in capsys.readouterr().err
    assert not out.exists()


def test_sizes_are_said_as_people_say_them():
    assert [fit.said(n) for n in (999, 10**6, 2 * GB, 1.5e12, 1e16)] == [
        "1.0 kB", "1.0 MB", "2.0 GB", "1.5 TB", "10,000.0 TB"]


CFG = dataclasses.replace(agreement.TINY, layers=1, dense_layers=1, moe=None, mtp_depth=1,
                          attention=agreement.GQA)


def test_a_generation_that_does_not_fit_is_refused_before_it_is_compiled(free):
    p = agreement.draw(transformer.specs(CFG), 0)
    free(10**6)
    # 2 layers of 2 key-value heads x 4 channels, keys and values, float32; 64 positions a time.
    room_of_a_row = -(-(3 + 10**6 + 1) // 64) * 64
    size = 3 * room_of_a_row * 2 * 2 * 2 * 4 * 4 + 3 * 11 * 4
    said = rf"at least {fit.said(size)} of .* cache; lower --max-new-tokens"
    with pytest.raises(UserError, match=said):
        generate(p, CFG, [[1, 2, 3], [4], [5]], Sampling(max_new_tokens=10**6),
                 Options(draft=True))
    with pytest.raises(UserError, match="max_new_tokens=1000000000000 is more than any machine"):
        Sampling(max_new_tokens=10**12)


def test_parameters_that_do_not_fit_are_not_read(free, tmp_path):
    p = agreement.draw(transformer.specs(CFG), 0)
    store = Store(tmp_path / "checkpoints", keep=1)
    store.save(1, {"params": p}, {})
    store.close()
    size = 4 * params.size(transformer.specs(CFG))
    free(size - 1)
    with pytest.raises(UserError, match=f"parameters in .* needs at least {fit.said(size)} of"):
        weights.load(tmp_path, choice=weights.Choice(model=CFG))
    free(size)
    got = weights.load(tmp_path, choice=weights.Choice(model=CFG))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, p))


@pytest.mark.parametrize(("mode", "flags"), [
    ("train", ["--batch-size", "100000"]), ("train", ["--seq-len", "1000000000"]),
    ("decode", ["--batch-size", "1000000"]), ("decode", ["--seq-len", "1000000000"]),
    ("decode", ["--steps", "1000000000"])])
def test_a_benchmark_that_does_not_fit_is_refused(mode, flags, free, capsys):
    free(10**9)
    assert main(["bench", mode, *flags]) == 2
    said = capsys.readouterr().err
    assert re.search(r"needs at least .* 1.0 GB are available .* lower --batch", said)
