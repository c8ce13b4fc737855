"""A mesh has the axes its layout names; a layout that does not divide is refused with a remedy."""

import jax
import pytest
from jax.sharding import AxisType

from dsjax.config.parallel import ParallelConfig
from dsjax.errors import UserError
from dsjax.parallel.mesh import AXES, check, make_mesh
from tests.train.small_run import MODEL  # 6 experts, d_model 24


def test_axes_are_named_and_auto_and_experts_are_neighbors():
    mesh = make_mesh(ParallelConfig(data=2, expert=4, expert_nodes=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "node": 2, "expert": 2}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert [d.id for d in mesh.devices[0, 0, 0]] == [0, 1]


def test_a_layout_may_use_some_of_the_devices_and_never_more():
    assert make_mesh(ParallelConfig(data=2)).size == 2
    with pytest.raises(UserError, match=r"needs 16 devices and there are 8.*at most 8"):
        make_mesh(ParallelConfig(data=4, fsdp=4))
    assert make_mesh(ParallelConfig(), jax.devices()[3:]).devices.item().id == 3


@pytest.mark.parametrize(("layout", "rows", "microbatches", "words"), [
    (ParallelConfig(data=8), 20, 1, "use 16 or 24 rows"),
    (ParallelConfig(data=2), 6, 2, "use 4 or 8 rows"),
    (ParallelConfig(data=8), 4, 1, "use 8 rows"),
    (ParallelConfig(expert=4), 8, 1, r"--parallel.expert 4; choose from \[1, 2, 3, 6\]"),
    (ParallelConfig(expert=5), 8, 1, r"--parallel.expert 5; choose from \[1, 2, 3, 6\]"),
    (ParallelConfig(fsdp=5), 10, 1, r"--parallel.fsdp 5; choose from \[1, 2, 3, 4, 6, 8, 12, 24\]"),
])
def test_what_does_not_divide_is_refused_with_what_would(layout, rows, microbatches, words):
    with pytest.raises(UserError, match=words):
        check(layout, MODEL, [rows], microbatches)


def test_a_model_without_experts_lies_on_no_expert_axis():
    import dataclasses

    dense = dataclasses.replace(MODEL, moe=None, dense_layers=MODEL.layers)
    with pytest.raises(UserError, match="no experts to share"):
        check(ParallelConfig(expert=2), dense, [8], 1)


def test_a_layout_divides_its_expert_axis_over_its_nodes():
    with pytest.raises(ValueError, match=r"choose expert_nodes from \[1, 2, 4\]"):
        ParallelConfig(expert=4, expert_nodes=3)
