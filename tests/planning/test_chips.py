"""The table of chips against what vendors print of whole pods, and the names of topologies."""

from __future__ import annotations

import json
import math

import pytest

from maestro_jax.errors import UserError
from maestro_jax.planning.chips import CHIPS, GIB, parse_topology, slice_shapes

# Cloud TPU prints these of whole pods, beside the figures of a chip that the table has: peak in
# bfloat16, bandwidth of an all-reduce (all links in both directions) and of the bisection.
PODS = {
    "v4": ("16x16x16", 1.1e18, 1.1e15, 24e12),
    "v5e": ("16x16", 50.63e15, 51.2e12, 1.6e12),
    "v6e": ("16x16", 234.9e15, 102.4e12, 3.2e12),
}


@pytest.mark.parametrize("name", PODS)
def test_chips_add_up_to_their_pods(name: str) -> None:
    shape, peak, all_reduce, bisection = PODS[name]
    pod = parse_topology(f"{name}:{shape}")
    chip = pod.chip
    assert pod.chips == chip.max_slice
    assert pod.chips * chip.peak_flops == pytest.approx(peak, rel=0.03)
    links = 2 * chip.torus
    assert pod.chips * links * chip.link_bandwidth == pytest.approx(all_reduce, rel=0.03)
    # A cut across one axis meets each ring of that axis twice.
    cut = 2 * pod.chips // pod.shape[0]
    assert cut * chip.link_bandwidth == pytest.approx(bisection, rel=0.05)


@pytest.mark.parametrize(
    ("name", "both_ways"), [("v5e", 400e9), ("v5p", 1200e9), ("v6e", 800e9), ("tpu7x", 1200e9)]
)
def test_links_add_up_to_what_is_printed_of_a_chip(name: str, both_ways: float) -> None:
    chip = CHIPS[name]
    assert 2 * chip.torus * 2 * chip.link_bandwidth == both_ways


def test_the_network_of_a_host() -> None:
    # v5e: eight chips share two cards of 100 Gb/s.
    assert 8 * CHIPS["v5e"].dcn_bandwidth == 2 * 100e9 / 8
    # DGX H100: eight cards of 400 Gb/s for eight GPUs.
    assert 8 * CHIPS["H100"].dcn_bandwidth == 8 * 400e9 / 8


def test_every_chip_names_its_sources() -> None:
    for chip in CHIPS.values():
        assert chip.sources and all(source.startswith("https://") for source in chip.sources)
        assert chip.usable_hbm_bytes <= chip.hbm_bytes
        assert 0.3 < chip.achievable < 0.8


def test_what_a_topology_says() -> None:
    topology = parse_topology("v5e:16x16", slices=2)
    assert (topology.chips, topology.chips_per_slice, topology.devices) == (512, 256, 512)
    assert (topology.hosts, topology.chips_per_host) == (128, 4)
    assert topology.libtpu_name == "v5e:16x16" and topology.libtpu_options == {"num_slices": 2}
    assert topology.wraps == (True, True)
    assert str(topology) == "2 slices of v5e:16x16"
    assert parse_topology("v5e:8x16").wraps == (False, True)
    assert parse_topology("v4:2x4x4").wraps == (False, False, False)
    assert parse_topology("v4:4x4x8").wraps == (True, True, True)


def test_names_that_people_use() -> None:
    assert parse_topology("v5:4x4x4") == parse_topology("v5p:4x4x4")
    assert parse_topology("v5p:4x4x4").libtpu_name == "v5:4x4x4"
    assert parse_topology("Trillium:16x16").chip.name == "v6e"
    assert parse_topology("ironwood:4x4x4").devices == 128
    assert parse_topology("gpu:A100x8").chip.name == "A100-80"
    assert parse_topology("gpu:a100-40x4").chip.hbm_bytes == 40e9
    machines = parse_topology("gpu:H100x8x4")
    assert (machines.chips, machines.slices, machines.hosts) == (32, 4, 4)
    assert machines.name == "gpu:H100x8x4" and parse_topology(machines.name) == machines
    assert parse_topology("gpu:H100x8", slices=4) == machines


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5x:16x16", ["Did you mean", "v4, v5e, v5p, v6e, tpu7x"]),
        ("v5e:16x15", ["no slice of 16x15", "16x16", "2x4"]),
        ("v5e:16x8", ["'8x16'"]),
        ("v5e", ["v5e:16x16"]),
        ("v5e:16,16", ["v5e:16x16"]),
        ("v4:4x4", ["no slice of 4x4", "4x4x8"]),
        ("v4:8x4x4", ["'4x4x8'"]),
        ("v4:16x16x20", ["up to 4096 chips"]),
        ("v5litepod-256", ["v5e:16x16"]),
        ("v5p-128", ["v5p:4x4x4"]),
        ("gpu:H10x8", ["'H100'"]),
        ("gpu:H100x16", ["gpu:H100x8x2"]),
        ("H100x8", ["gpu:H100x8"]),
        ("gpu:", ["no GPU is called ''"]),
        ("", ["no TPU is called ''"]),
    ],
)
def test_what_is_no_topology_gets_one_line(text: str, says: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_topology(text)
    message = str(error.value)
    assert "\n" not in message
    for part in says:
        assert part in message


def test_slices_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="at least one"):
        parse_topology("v5e:16x16", slices=0)
    with pytest.raises(UserError, match="leave --slices out"):
        parse_topology("gpu:H100x8x4", slices=2)


def test_shapes_of_slices() -> None:
    for chip in CHIPS.values():
        shapes = list(slice_shapes(chip))
        assert len(set(shapes)) == len(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        assert sizes == sorted(sizes) and sizes[-1] <= chip.max_slice
    # Those that Google's page of v5p lists.
    listed = "2x2x1 2x2x2 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24"
    v5p = set(slice_shapes(CHIPS["v5p"]))
    assert {tuple(map(int, shape.split("x"))) for shape in listed.split()} <= v5p


@pytest.mark.tpu_backend
def test_the_compiler_knows_these_topologies(with_tpu_compiler) -> None:
    names = [
        "v5e:1x1", "v5e:2x4", "v5e:16x16", "v4:4x4x8", "v5p:4x4x4", "v6e:16x16", "tpu7x:4x4x4"
    ]  # fmt: skip
    printed = with_tpu_compiler(
        f"""
        import json, re
        import jax, jax.numpy as jnp
        from jax.experimental import topologies
        from maestro_jax.planning.chips import parse_topology

        for name in {names!r}:
            topology = parse_topology(name, slices=2 if name == "v5e:16x16" else 1)
            devices = topologies.get_topology_desc(
                topology.libtpu_name, platform="tpu", **topology.libtpu_options
            ).devices
            corner = [max(axis) + 1 for axis in zip(*(device.coords for device in devices))]
            # Asks for more than any chip has.
            array = jax.ShapeDtypeStruct(
                (2**19, 2**16), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(devices[0])
            )
            try:
                jax.jit(jnp.sin).lower(array).compile()
            except jax.errors.JaxRuntimeError as error:
                available = float(re.search(r"available HBM [(]([0-9.]+)G[)]", str(error))[1])
            hosts = len({{device.process_index for device in devices}})
            print(json.dumps([name, len(devices), hosts, corner, available]))
        """
    )
    found = [json.loads(line) for line in printed.splitlines()]
    assert [line[0] for line in found] == names
    for name, devices, hosts, corner, available in found:
        topology = parse_topology(name, slices=2 if name == "v5e:16x16" else 1)
        assert devices == topology.devices, name
        assert hosts == topology.hosts, name
        assert tuple(corner[: len(topology.shape)]) == topology.shape
        usable = topology.chip.usable_hbm_bytes / topology.chip.devices_per_chip
        assert available == pytest.approx(usable / GIB, abs=0.01), name
