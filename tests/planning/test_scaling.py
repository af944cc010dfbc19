"""The weak-scaling table: machines, meshes and what follows from them."""

from __future__ import annotations

import math

import pytest

from maestro_jax.errors import UserError
from maestro_jax.planning.analytic import trace_step
from maestro_jax.planning.chips import CHIPS, parse_topology
from maestro_jax.planning.roofline import Assumptions, roofline
from maestro_jax.planning.scaling import (
    SIZES,
    plot_scaling,
    scale_run,
    scaling_cells,
    topology_of,
    weak_scaling,
)


@pytest.mark.parametrize(
    ("chip", "names"),
    [
        ("v5e", ["v5e:4x4", "v5e:8x8", "v5e:16x16", "4 slices of v5e:16x16", "16 slices of "]),
        ("v4", ["v4:2x2x4", "v4:4x4x4", "v4:4x8x8", "v4:8x8x16", "v4:16x16x16"]),
        ("v5p", ["v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16", "v5p:16x16x16"]),
        ("H100", ["gpu:H100x8x2", "gpu:H100x8x8", "gpu:H100x8x32", "gpu:H100x8x128", "x512"]),
    ],
)
def test_machines_of_each_size(chip: str, names: list[str]) -> None:
    for chips, name in zip(SIZES, names, strict=True):
        topology = topology_of(CHIPS[chip], chips)
        assert topology.chips == chips
        assert name in str(topology)


def test_sizes_that_no_slices_make_up() -> None:
    assert str(topology_of(CHIPS["v4"], 8192)) == "2 slices of v4:16x16x16"
    with pytest.raises(UserError, match="No slices of v5e have 300 chips"):
        topology_of(CHIPS["v5e"], 300)


@pytest.fixture(scope="module")
def trace(small):
    return trace_step(small.run(), {"speech": 512})


def test_rows_of_the_table(trace) -> None:
    table = weak_scaling(trace, CHIPS["v5e"], audio_seconds=60.0)
    assert [row.topology.chips for row in table] == list(SIZES)
    for row in table:
        assert math.prod(row.mesh) == row.topology.devices
        # Slices are joined along data alone.
        assert row.mesh[0] % row.topology.slices == 0
        assert row.step.model_flops == trace.flops.model * row.topology.chips
        assert row.serial.seconds >= row.step.seconds
        assert row.efficiency == pytest.approx(table[0].step.seconds / row.step.seconds)
        rate = row.topology.chips * 60 / 3600 / row.step.seconds
        assert row.audio_hours_per_second == pytest.approx(rate)
        assert (row.slow_bytes > 0) == (row.topology.slices > 1)
    # A gradient that crosses between ever more slices approaches its whole size, twice.
    slow = [row.slow_bytes for row in table if row.topology.slices > 1]
    assert slow == sorted(slow)


def test_each_mesh_is_the_fastest_that_fits(trace) -> None:
    assumptions = Assumptions()
    (row,) = weak_scaling(trace, CHIPS["v5e"], [64], assumptions=assumptions)
    for fsdp in (1, 2, 4, 8, 16, 32, 64):
        step = roofline(row.topology, trace, (64 // fsdp, fsdp, 1), assumptions=assumptions)
        assert row.step.seconds <= step.seconds
    (row,) = weak_scaling(trace, CHIPS["v5e"], [64], tensor=4)
    assert row.mesh[2] == 4
    with pytest.raises(UserError, match="not a multiple of"):
        weak_scaling(trace, CHIPS["v5e"], [16], tensor=3)


def test_text_and_picture(trace, tmp_path) -> None:
    table = weak_scaling(trace, CHIPS["v5e"], audio_seconds=60.0)
    cells = scaling_cells(table)
    assert len({len(line) for line in cells}) == 1 and len(cells) == 1 + len(SIZES)
    assert [line[0] for line in cells[1:]] == ["16", "64", "256", "1,024", "4,096"]
    plot_scaling(table, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_keeps_its_rows_a_chip(small) -> None:
    # 512 rows on 64 chips, four of which share each product: 32 rows each.
    run = small.run(mesh=(-1, 8, 4), batch=512)
    small_one, large = scale_run(run, parse_topology("v5e:8x8"), [64, 1024])
    one = 5 * 2 * small.INPUTS * small.HIDDEN
    assert small_one.step.model_flops == 512 * one
    assert large.step.model_flops == 16 * 512 * one
    assert small_one.mesh[2] == large.mesh[2] == 4
    audio = 512 * small.INPUTS / 16000 / 3600
    assert small_one.audio_hours_per_second == pytest.approx(audio / small_one.step.seconds)
