"""The search over meshes and batches, without a compiler."""

from __future__ import annotations

import pytest

from maestro_jax.errors import UserError
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.search import search


def test_every_candidate_divides_and_the_fastest_that_fits_is_first(small) -> None:
    topology = parse_topology("v5e:4x4")
    found = search(small.run(batch=64), topology, compiled=0)
    assert found
    for each in found:
        data, fsdp, tensor = each.mesh
        assert data * fsdp * tensor == 16
        assert each.rows["speech"] * data * fsdp == 64 * each.times
        assert each.program is None
    fitting = [each for each in found if each.fits]
    assert list(found[: len(fitting)]) == fitting
    speeds = [each.times / each.step.seconds for each in fitting]
    assert speeds == sorted(speeds, reverse=True)
    # All of a slice along fsdp, none, and what a tensor axis leaves.
    assert {(1, 16, 1), (16, 1, 1), (1, 8, 2), (8, 1, 2)} <= {each.mesh for each in found}


def test_slices_are_joined_along_data(small) -> None:
    topology = parse_topology("v5e:2x2", slices=2)
    found = search(small.run(batch=64), topology, compiled=0, tensor=(1,))
    assert {each.mesh for each in found} == {(8, 1, 1), (2, 4, 1)}


def test_batches_that_nothing_divides_are_refused(small) -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        search(small.run(batch=3), parse_topology("v5e:4x4"), compiled=0, tensor=(1,))
