"""A machine is named, or refused in a sentence that says how to name one."""

import pytest

from dsjax.errors import UserError
from dsjax.plan import target


def test_a_tpu_is_a_torus_of_chips_and_a_gpu_machine_is_nodes_of_gpus():
    pod, hosts = target.parse("v5p:8x16x16"), target.parse("h200:256x8")
    assert (pod.devices, pod.chip.platform, pod.chip.memory) == (2048, "tpu", 95 * 10**9)
    assert (hosts.devices, hosts.chip.platform, hosts.chip.memory) == (2048, "cuda", 141 * 10**9)


def test_a_chip_of_two_cores_is_two_devices():
    assert target.parse("tpu7x:2x2x1").devices == 8


@pytest.mark.parametrize(("name", "said"), [
    ("v9:2x2", "is no machine"),
    ("v5p", "is no machine"),
    ("v5p:2x0", "is no machine"),
    ("h200:8", "needs two sizes"),
    ("v5e:2x2x2", "a torus of 2"),
])
def test_a_name_that_is_none_is_refused(name, said):
    with pytest.raises(UserError, match=said):
        target.parse(name)


@pytest.mark.parametrize(("name", "extra"), [("v5p:2x2x1", "tpu-aot"), ("h200:1x8", "gpu-aot")])
def test_a_compiler_that_is_absent_is_named_with_its_command(name, extra, monkeypatch):
    monkeypatch.setattr(target, "is_installed", lambda module: False)
    with pytest.raises(UserError, match=rf"pip install 'dsjax\[{extra}\]'"):
        target.require(target.parse(name))
