"""Bytes that programs send, of programs whose collectives are known, really compiled."""

from __future__ import annotations

import json
import math
from textwrap import dedent

import pytest

from maestro_jax.planning.collectives import (
    between_slices,
    by_kind_and_axes,
    find_collectives,
    replica_groups,
    sent_bytes,
)
from maestro_jax.planning.hlo import arrays, parse_hlo, parts_of_tuple

MESH = {"data": 2, "fsdp": 4}

SETUP = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from maestro_jax.planning.collectives import by_kind_and_axes, between_slices, find_collectives

mesh = jax.make_mesh({shape}, {names}, axis_types=(AxisType.Auto,) * {count})

def report(name, function, *arguments, slices=1):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = find_collectives(text, dict(mesh.shape), slices=slices)
    sums = [[kind, list(axes), sent] for (kind, axes), sent in by_kind_and_axes(found).items()]
    print(json.dumps([name, sums, between_slices(found)]))
"""


def setup(mesh: dict[str, int]) -> str:
    return SETUP.format(shape=tuple(mesh.values()), names=tuple(mesh), count=len(mesh))


def found(printed: str) -> dict[str, tuple[dict[tuple[str, tuple[str, ...]], float], float]]:
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    return {
        name: ({(kind, tuple(axes)): sent for kind, axes, sent in sums}, crossing)
        for name, sums, crossing in lines
    }


def test_each_kind_along_each_axis(on_eight_devices) -> None:
    """Collectives that the program asks for by name, alone and in loops."""
    program = """
    from functools import partial

    x = jax.ShapeDtypeStruct(
        (64, 64), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"), None))
    )
    whole = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, P()))

    def mapped(function, out=P(("data", "fsdp"), None), into=P(("data", "fsdp"), None)):
        return jax.shard_map(function, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)

    # Rows differ along the axis that a collective does not cross, and stay split along it.
    for axis, rows in (("data", "fsdp"), ("fsdp", "data"), (("data", "fsdp"), None)):
        name = axis if isinstance(axis, str) else "both"
        gather = mapped(lambda x: jax.lax.all_gather(x, axis, tiled=True), P(rows))
        report(f"gather {name}", gather, x)
        report(f"reduce {name}", mapped(lambda x: jax.lax.psum(x, axis), P(rows)), x)
        report(
            f"scatter {name}",
            mapped(lambda x: jax.lax.psum_scatter(x, axis, tiled=True), P(axis), P()),
            whole,
        )
        report(
            f"exchange {name}",
            mapped(lambda x: jax.lax.all_to_all(x, axis, 1, 0, tiled=True), P(rows, axis)),
            x,
        )
    ring = [(i, (i + 1) % 4) for i in range(4)]
    report("permute", mapped(lambda x: jax.lax.ppermute(x, "fsdp", ring)), x)

    def scanned(x):
        def turn(x, _):
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        return jax.lax.scan(turn, x, None, length=5)[0]

    def nested(x):
        def turn(_, x):
            return scanned(x) + jax.lax.ppermute(x, "fsdp", ring)

        return jax.lax.fori_loop(2, 9, turn, x)

    report("scan", mapped(scanned), x)
    report("nested", mapped(nested), x)
    # The same, had each half of the devices been a slice.
    report("slices", mapped(lambda x: jax.lax.psum(x, "data") + jax.lax.psum(x, "fsdp") ** 2), x,
           slices=2)
    """
    results = found(on_eight_devices(setup(MESH) + dedent(program)))
    whole = 64 * 64 * 4
    part = whole / 8
    axes = {"data": ("data",), "fsdp": ("fsdp",), "both": ("data", "fsdp")}
    for name, along in axes.items():
        size = math.prod(MESH[axis] for axis in along)
        ring = (size - 1) / size
        assert results[f"gather {name}"][0] == {("all-gather", along): part * size * ring}
        assert results[f"reduce {name}"][0] == {("all-reduce", along): 2 * part * ring}
        assert results[f"scatter {name}"][0] == {("reduce-scatter", along): whole * ring}
        assert results[f"exchange {name}"][0] == {("all-to-all", along): part * ring}
    assert results["permute"][0] == {("collective-permute", ("fsdp",)): part}
    reduced = ("all-reduce", ("fsdp",))
    assert results["scan"][0] == {reduced: 5 * 2 * part * 3 / 4}
    nested = {reduced: 7 * 5 * 2 * part * 3 / 4, ("collective-permute", ("fsdp",)): 7 * part}
    assert results["nested"][0] == nested
    assert results["slices"][0] == {
        ("all-reduce", ("fsdp",)): 2 * part * 3 / 4,
        ("all-reduce", ("data",)): 2 * part / 2,
    }
    assert results["slices"][1] == 2 * part / 2


STEP = """
    D, H, L = 256, 512, 6

    def sharding(*axes):
        return NamedSharding(mesh, P(*axes))

    def loss(params, x):
        def layer(x, weights):
            up, down = weights
            h = jax.nn.relu(x @ up.astype(x.dtype))
            h = jax.lax.with_sharding_constraint(h, sharding(("data", "fsdp"), None, "tensor"))
            y = x + h @ down.astype(x.dtype)
            return jax.lax.with_sharding_constraint(y, sharding(("data", "fsdp"), None, None)), None

        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    def step(params, x):
        value, gradients = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients), value

    def arguments(dtype, rows):
        up = jax.ShapeDtypeStruct((L, D, H), jnp.float32, sharding=sharding(None, "fsdp", "tensor"))
        down = jax.ShapeDtypeStruct(
            (L, H, D), jnp.float32, sharding=sharding(None, "tensor", "fsdp")
        )
        x = jax.ShapeDtypeStruct(
            (rows, 128, D), dtype, sharding=sharding(("data", "fsdp"), None, None)
        )
        return (up, down), x
"""


def step_by_hand(
    mesh: dict[str, int], width: int, rows: int, gathers: int
) -> dict[tuple[str, tuple[str, ...]], float]:
    """Six layers of two matrices, split over fsdp and tensor.

    Args:
        mesh: The mesh.
        width: Bytes of a number.
        rows: Rows of the batch.
        gathers: How often a matrix is gathered.
    """
    fsdp = (mesh["fsdp"] - 1) / mesh["fsdp"]
    matrix = 256 * 512 * width / mesh["tensor"]
    row_bytes = rows / (mesh["data"] * mesh["fsdp"]) * 128 * 256 * width
    tensor = 2 * (mesh["tensor"] - 1) / mesh["tensor"]
    return {
        ("all-gather", ("fsdp",)): 6 * gathers * matrix * fsdp,
        ("reduce-scatter", ("fsdp",)): 6 * 2 * matrix * fsdp,
        # What is left of a matrix's gradient after that, between the rows of the batch.
        ("all-reduce", ("data",)): 6
        * 2
        * (matrix / mesh["fsdp"])
        * 2
        * (mesh["data"] - 1)
        / mesh["data"],
        # Once a layer forward, once backward.
        ("all-reduce", ("tensor",)): 6 * 2 * row_bytes * tensor,
    }


def test_a_training_step_on_cpu_devices(on_eight_devices) -> None:
    """What CPUs do not scatter they reduce and slice: the gradients' bytes are then double."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    program = setup(mesh) + dedent(STEP + "\n    report('step', step, *arguments('float32', 16))")
    sums, _ = found(on_eight_devices(program))["step"]
    by_hand = step_by_hand(mesh, 4, 16, gathers=4)
    tensor = ("all-reduce", ("tensor",))
    assert sums[tensor] == pytest.approx(by_hand[tensor], rel=0.01)
    gradients = sum(
        sent for (kind, axes), sent in sums.items() if kind == "all-reduce" and "tensor" not in axes
    )
    # One reduction over both axes, 2 (n - 1) / n of a matrix, or one over each.
    matrix = 256 * 512 * 4 / 2
    assert 6 * 2 * matrix * 1.5 <= gradients * 1.01 and gradients <= 6 * 2 * matrix * 2 * 1.01


@pytest.mark.tpu_backend
def test_a_training_step_that_the_tpu_compiler_wrote(with_tpu_compiler) -> None:
    """Fused asynchronous gathers, scatters in fusions, the network between slices, loops."""
    program = """
    import json
    import jax, jax.numpy as jnp
    from jax.experimental import mesh_utils, topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
    from maestro_jax.planning.chips import parse_topology
    from maestro_jax.planning.collectives import by_kind_and_axes, between_slices, find_collectives

    topology = parse_topology("v5e:4x4", slices=2)
    devices = topologies.get_topology_desc(
        topology.libtpu_name, platform="tpu", **topology.libtpu_options
    ).devices
    mesh = Mesh(
        mesh_utils.create_hybrid_device_mesh((1, 4, 4), (2, 1, 1), devices=list(devices)),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )
    """
    program += STEP.replace("D, H, L = 256, 512, 6", "D, H, L = 1024, 4096, 6")
    program += """
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=0).lower(*arguments(jnp.bfloat16, 128))
    found = find_collectives(lowered.compile().as_text(), dict(mesh.shape), slices=2)
    sums = [[kind, list(axes), sent] for (kind, axes), sent in by_kind_and_axes(found).items()]
    print(json.dumps(["step", sums, between_slices(found)]))
    """
    sums, crossing = found(with_tpu_compiler(dedent(program)))["step"]
    scale = 1024 * 4096 / (256 * 512)
    mesh = {"data": 2, "fsdp": 4, "tensor": 4}
    # Both matrices forward, both again backward.
    by_hand = step_by_hand(mesh, 2, 128, gathers=4)
    for (kind, axes), sent in by_hand.items():
        wanted = sent * (1024 / 256 if axes == ("tensor",) else scale)
        assert sums[kind, axes] == pytest.approx(wanted, rel=0.01), (kind, axes)
    assert crossing == pytest.approx(by_hand["all-reduce", ("data",)] * scale, rel=0.01)


FORMS = """\
HloModule forms

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[32]) -> f32[4] {
  %p = f32[32]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%p), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[32]) -> f32[32] {
  %x = f32[32]{0} parameter(0)
  %g = (f32[32]{0:T(256)}, f32[64]{0:T(256)S(1)}) all-gather-start(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %gd = f32[64]{0:T(256)S(1)} all-gather-done(%g)
  %p = (f32[32]{0}, f32[32]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  %pd = f32[32]{0} collective-permute-done(%p)
  %s = ((f32[32]{0}), f32[4]{0}) async-start(%x), calls=%wrapped
  %sd = f32[4]{0} async-done(%s), calls=%wrapped
  %r = (f32[32]{0}, bf16[6,2]{1,0}) all-reduce(%x, %y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %alone = f32[32]{0} all-reduce(%x), replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %all = f32[32]{0} all-reduce-start(%x), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_forms_of_the_text() -> None:
    sums = by_kind_and_axes(find_collectives(FORMS, MESH))
    assert sums == {
        ("all-gather", ("data",)): 64 * 4 / 2,
        ("collective-permute", ("data",)): 32 * 4,
        ("reduce-scatter", ("data", "fsdp")): 32 * 4 * 7 / 8,
        ("all-reduce", ("data",)): 2 * (32 * 4 + 12 * 2) / 2,
        ("all-reduce", ("data", "fsdp")): 2 * 32 * 4 * 7 / 8,
    }
    crossing = between_slices(find_collectives(FORMS, MESH, slices=2))
    assert crossing == sum(sums.values())
    with pytest.raises(ValueError, match="is not in the mesh"):
        find_collectives(FORMS, {"data": 4})
    with pytest.raises(ValueError, match="ENTRY"):
        parse_hlo("nothing")


COUNTED = """\
HloModule counted

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  %two = s32[]{{:T(128)}} constant(2)
{body}
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%next, %y)
}}

%condition (t: (s32[], f32[8])) -> pred[] {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  %nine = s32[]{{:T(128)}} constant(9)
{condition}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %one = s32[]{{:T(128)}} constant(1)
  %start = (s32[], f32[8]{{0}}) tuple(%one, %x)
  %loop = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body
  ROOT %y = f32[8]{{0}} get-tuple-element(%loop), index=1
}}
"""


@pytest.mark.parametrize(
    ("body", "condition"),
    [
        pytest.param(
            "  %i = s32[]{:T(128)} get-tuple-element(%t), index=0\n"
            "  %v = f32[8]{0} get-tuple-element(%t), index=1\n"
            "  %next = s32[]{:T(128)} add(%i, %two)\n"
            "  %y = f32[8]{0} negate(%v)",
            "  %i = s32[]{:T(128)} get-tuple-element(%t), index=0\n"
            "  ROOT %go = pred[]{:T(512)} compare(%i, %nine), direction=LT",
            id="instructions",
        ),
        pytest.param(
            "  %next = s32[]{:T(128)} add(%t#0, %two)\n  %y = f32[8]{0} negate(%t#1)",
            "  ROOT %go = pred[]{:T(512)} compare(%t#0, %nine), direction=LT",
            id="elements of operands, from jax 0.12 on",
        ),
    ],
)
def test_loops_are_counted_in_both_forms_of_tuples(body: str, condition: str) -> None:
    module = parse_hlo(COUNTED.format(body=body, condition=condition))
    # 1, 3, 5 and 7 are below 9.
    assert {name: module.times[name] for name in ("main", "body")} == {"main": 1, "body": 4}


def test_types() -> None:
    several = "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s4[3]{0}, f8e4m3fn[2], u32[])"
    assert arrays(several) == [
        ("bf16", (8, 128), 2048),
        ("s4", (3,), 1.5),
        ("f8e4m3fn", (2,), 2),
        ("u32", (), 4),
    ]
    assert parts_of_tuple("((f32[2]{0:T(8,2)}, u8[]), token[])") == [
        "(f32[2]{0:T(8,2)}, u8[])",
        "token[]",
    ]
    assert sent_bytes("all-to-all", 8.0, 4) == 6.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mesh['data'=2,'fsdp'=4] {'data'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['data'=2,'fsdp'=4] {'data','fsdp'}", [list(range(8))]),
        ("mesh['data'=2,'fsdp'=4] {'fsdp':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['data'=2,'fsdp'=4] {'fsdp':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        # Devices 0, 2, 4, 6, 1, 3, 5, 7 in a mesh of 2 x 4.
        (
            "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
            [[0, 1], [2, 3], [4, 5], [6, 7]],
        ),
        (
            "mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'b'}",
            [[0, 2, 4, 6], [1, 3, 5, 7]],
        ),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("{{0,4},{1,5}}", [[0, 4], [1, 5]]),
        ("{}", [list(range(8))]),
    ],
)
def test_replica_groups_in_every_form(text: str, expected: list[list[int]]) -> None:
    assert sorted(replica_groups(text, 8)) == expected


@pytest.mark.parametrize("text", ["mesh['data'=2] {data}", "[4,2]<=(8)", "{0,1}", "all"])
def test_replica_groups_of_an_unknown_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        replica_groups(text, 8)
