"""Seconds by roofline, against sums by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from maestro_jax.flops import count_flops
from maestro_jax.planning.analytic import Transfer, trace_step
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.roofline import (
    Assumptions,
    axis_bandwidth,
    model_flops_utilisation,
    product_seconds,
    roofline,
    slow_bytes,
)

IDEAL = Assumptions(memory=1.0, network=1.0, slice_doubling=1.0)


def product(rows: int, inner: int, outer: int):
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((rows, inner), (inner, outer))]
    return count_flops(jnp.dot, *shapes)


def test_a_product_is_bound_by_what_takes_longer() -> None:
    chip = parse_topology("v5e:16x16").chip
    # How to Scale Your Model, Rooflines: on a v5e, about 240 rows keep its units busy.
    wide = product(4096, 4096, 4096)
    busy = 2 * 4096**3 / (197e12 * chip.achievable)
    assert product_seconds(chip, wide, assumptions=IDEAL) == pytest.approx(busy)
    narrow = product(8, 4096, 4096)
    waiting = 2 * (2 * 8 * 4096 + 4096**2) / 819e9
    assert product_seconds(chip, narrow, assumptions=IDEAL) == pytest.approx(waiting)
    assert product_seconds(chip, wide, 4, IDEAL) == pytest.approx(busy / 4)


@pytest.mark.parametrize(
    ("topology", "mesh", "axis", "gigabytes"),
    [
        # A ring of 16: a link either way. All 256: both rings.
        ("v5e:16x16", (16, 16, 1), "fsdp", 2 * 50),
        ("v5e:16x16", (1, 256, 1), "fsdp", 4 * 50),
        # No ring below 16.
        ("v5e:8x8", (8, 8, 1), "fsdp", 50),
        ("v5e:8x8", (1, 64, 1), "fsdp", 2 * 50),
        ("v5p:4x4x4", (1, 64, 1), "fsdp", 6 * 100),
        ("v5p:4x4x4", (1, 16, 4), "fsdp", 4 * 100),
        ("v5p:4x4x4", (1, 16, 4), "tensor", 2 * 100),
        ("v4:4x4x8", (1, 128, 1), "fsdp", 6 * 45),
        # Two devices of a chip share its links.
        ("tpu7x:4x4x4", (1, 128, 1), "fsdp", 6 * 100 / 2),
        ("gpu:H100x8", (1, 8, 1), "fsdp", 450),
    ],
)
def test_bandwidth_along_an_axis(topology, mesh, axis, gigabytes) -> None:
    assert axis_bandwidth(parse_topology(topology), mesh, axis) == pytest.approx(gigabytes * 1e9)


def test_what_goes_between_slices() -> None:
    slices = parse_topology("v5e:16x16", slices=4)
    # Gradients of 1 GB a device, between 4 devices that differ in their slice alone.
    sent = Transfer(kind="all-reduce", axis="data", group=4, sent=2e9 * 3 / 4)
    assert slow_bytes(slices, (4, 256, 1), sent) == pytest.approx(2e9 * 3 / 4)
    # Eight of them, two in a slice: each hands on half.
    sent = Transfer(kind="all-reduce", axis="data", group=8, sent=2e9 * 7 / 8)
    assert slow_bytes(slices, (8, 128, 1), sent) == pytest.approx(2e9 / 2 * 3 / 4)
    gather = Transfer(kind="all-gather", axis="fsdp", group=256, sent=1e9)
    assert slow_bytes(slices, (4, 256, 1), gather) == 0
    # Parameters split over two machines: each GPU fetches an eighth of the other machine's half.
    machines = parse_topology("gpu:H100x8x2")
    gather = Transfer(kind="all-gather", axis="fsdp", group=16, sent=16e9 * 15 / 16)
    assert slow_bytes(machines, (1, 16, 1), gather) == pytest.approx(16e9 / 8 / 2)
    assert slow_bytes(parse_topology("v5e:16x16"), (1, 256, 1), gather) == 0


def test_a_whole_step(small) -> None:
    run = small.run()
    trace = trace_step(run, {"speech": 16})
    topology, mesh = parse_topology("v5e:4x4"), (1, 16, 1)
    step = roofline(topology, trace, mesh, assumptions=IDEAL)
    gradient, update = step.phases
    chip = topology.chip
    products = product_seconds(chip, trace.flops, assumptions=IDEAL)
    assert gradient.compute == products
    sent = sum(each.sent for each in trace.transfers(mesh))
    # A mesh of 4x4 without rings: a link along each axis.
    assert gradient.network == pytest.approx(sent / (2 * 50e9))
    # Parameters, two moments and the average, read and written, and gradients read.
    # The bias of the first layer is no part of what is split over fsdp.
    numbers = (trace.parameters - small.HIDDEN) / 16 + small.HIDDEN
    assert update.memory == pytest.approx((2 * 4 + 1) * 4 * numbers / 819e9, rel=0.01)
    model = 16 * 16 * 5 * 2 * small.INPUTS * small.HIDDEN
    assert step.model_flops == model
    assert step.utilisation == pytest.approx(model / (step.seconds * 16 * 197e12))
    # Rows so few leave the network the busiest, and without overlap all is added up.
    assert step.bound == "network"
    serial = roofline(
        topology, trace, mesh, assumptions=Assumptions(memory=1.0, network=1.0, overlap=False)
    )
    assert serial.seconds > step.seconds
    assert serial.phases[0].seconds == pytest.approx(
        gradient.compute + gradient.memory + gradient.network + gradient.loops
    )


def test_what_a_compiled_program_sends_takes_the_place_of_the_estimate(small) -> None:
    trace = trace_step(small.run(), {"speech": 16})
    topology = parse_topology("v5e:16x16", slices=2)
    gather = Transfer(kind="all-gather", axis="fsdp", group=256, sent=2e9)
    step = roofline(topology, trace, (2, 256, 1), transfers=[gather], assumptions=IDEAL)
    # 2 GB over four links.
    assert step.phases[0].network == pytest.approx(2e9 / 200e9)
    reduce = Transfer(kind="all-reduce", axis="data", group=2, sent=1e9)
    step = roofline(topology, trace, (2, 256, 1), transfers=[gather, reduce], assumptions=IDEAL)
    # 1 GB to the other slice, over a share of 25 Gb/s of the host's network.
    assert step.phases[0].network == pytest.approx(1e9 / 3.125e9)


def test_doubling_slices_costs_what_was_measured(small) -> None:
    """MaxText's 16B model on v5e: 61.10% on one slice, 54.65% on 32."""
    trace = trace_step(small.run(), {"speech": 16384})
    one = roofline(parse_topology("v5e:16x16"), trace, (1, 256, 1)).phases[0].compute
    many = roofline(parse_topology("v5e:16x16", slices=32), trace, (32, 256, 1)).phases[0].compute
    assert one / many == pytest.approx(54.65 / 61.10, rel=0.01)


def test_utilisation() -> None:
    # How to Scale Your Model: 6 x 70e9 x 15e12 FLOPs at 40% of 8960 v5p chips take 44 days.
    flops = 6 * 70e9 * 15e12
    days = 44 * 24 * 3600
    assert model_flops_utilisation(flops, days, 8960, 459e12) == pytest.approx(0.4, rel=0.02)
