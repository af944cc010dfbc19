"""Where the time of a compiled program goes, by hand and beside what the TPU compiler makes."""

from __future__ import annotations

import json

import pytest

from maestro_jax.planning.chips import CHIPS
from maestro_jax.planning.cycles import (
    CLOCKS,
    compiler_seconds,
    loop_times,
    product_flops,
    time_shares,
)
from maestro_jax.planning.hlo import parse_hlo

CHIP = CHIPS["v5e"]


def test_cycles_are_summed_over_loops_and_not_within_fusions() -> None:
    config = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
    text = f"""HloModule jit_f, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %inner = f32[8]{{0}} add(%p, %p), {config % 999}
}}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{{0}} get-tuple-element(%t), index=1
  %unknown = f32[8]{{0}} copy(%x), {config % (2**63 - 1)}
  %f = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%fused, {config % 1000}
  ROOT %out = (s32[], f32[8]{{0}}) tuple(%i, %f)
}}

%condition (t: (s32[], f32[8])) -> pred[] {{
  %t = (s32[], f32[8]{{0}}) parameter(0)
  ROOT %go = pred[] constant(true)
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8]{{0}}) tuple(%zero, %x)
  %loop = (s32[], f32[8]{{0}}) while(%start), condition=%condition, body=%body, \
backend_config={{"known_trip_count":{{"n":"5"}}}}
  %y = f32[8]{{0}} get-tuple-element(%loop), index=1
  ROOT %last = f32[8]{{0}} copy(%y), {config % 250}
}}
"""
    chip = CHIPS["v5e"]
    assert compiler_seconds(text, chip) == pytest.approx((5 * 1000 + 250) / CLOCKS["v5e"])
    assert compiler_seconds(text, CHIPS["H100"]) is None


PROGRAM = """
import json, dataclasses
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.compiled import DoesNotFit, TileTooLarge, quick_options
from maestro_jax.planning.compiled import compile_program, compiler_devices

topology = parse_topology("{topology}")
mesh = Mesh(np.array(compiler_devices(topology)), ("data",))
def array(shape, spec, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
"""


def cycles(number: int, name: str = "") -> str:
    metadata = f'metadata={{op_name="{name}"}}, ' if name else ""
    return f'{metadata}backend_config={{"estimated_cycles":"{number}"}}'


SHARED = f"""HloModule jit_f, is_scheduled=true

%product (p: bf16[256,128], q: bf16[4,128,512], i: s32[]) -> bf16[256,512] {{
  %p = bf16[256,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  %q = bf16[4,128,512]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  %i = s32[]{{:T(128)}} parameter(2)
  %z = s32[]{{:T(128)}} constant(0)
  %row = bf16[1,128,512]{{2,1,0:T(8,128)(2,1)}} dynamic-slice(%q, %i, %z, %z), dynamic_slice_sizes={{1,128,512}}
  %kernel = bf16[128,512]{{1,0:T(8,128)(2,1)}} bitcast(%row)
  ROOT %y = bf16[256,512]{{1,0:T(8,128)(2,1)S(1)}} convolution(%p, %kernel), dim_labels=bf_io->bf, metadata={{op_name="jit(f)/transpose(jvp(Model.encode))/encoder/dot_general"}}
}}

%moves (p: f32[64,128]) -> f32[128,64] {{
  %p = f32[64,128]{{1,0:T(8,128)}} parameter(0)
  ROOT %t = f32[128,64]{{1,0:T(8,128)}} transpose(%p), dimensions={{1,0}}
}}

%store (p: f32[4,64], i: s32[], u: f32[1,64]) -> f32[4,64] {{
  %p = f32[4,64]{{1,0:T(4,128)}} parameter(0)
  %i = s32[]{{:T(128)}} parameter(1)
  %u = f32[1,64]{{1,0:T(1,128)S(1)}} parameter(2)
  %z = s32[]{{:T(128)}} constant(0)
  ROOT %s = f32[4,64]{{1,0:T(4,128)}} dynamic-update-slice(%p, %u, %i, %z)
}}

%body (t: (s32[], bf16[4,128,512], f32[4,64])) -> (s32[], bf16[4,128,512], f32[4,64]) {{
  %t = (s32[]{{:T(128)}}, bf16[4,128,512]{{2,1,0:T(8,128)(2,1)}}, f32[4,64]{{1,0:T(4,128)}}) parameter(0)
  %one = s32[]{{:T(128)}} constant(1)
  %next = s32[]{{:T(128)}} add(%t#0, %one)
  %x = bf16[256,128]{{1,0:T(8,128)(2,1)}} custom-call(), custom_call_target="AllocateBuffer"
  %u = f32[1,64]{{1,0:T(1,128)S(1)}} custom-call(), custom_call_target="AllocateBuffer"
  %y = bf16[256,512]{{1,0:T(8,128)(2,1)S(1)}} fusion(%x, %t#1, %t#0), kind=kOutput, calls=%product, {cycles(3000)}
  %kept = f32[4,64]{{1,0:T(4,128)}} fusion(%t#2, %t#0, %u), kind=kLoop, calls=%store, {cycles(100, "jit(f)/jvp(Model.encode)/encoder/rematted_computation/norm/mul")}
  ROOT %out = (s32[], bf16[4,128,512], f32[4,64]) tuple(%next, %t#1, %kept)
}}

%condition (t: (s32[], bf16[4,128,512], f32[4,64])) -> pred[] {{
  %t = (s32[], bf16[4,128,512], f32[4,64]) parameter(0)
  %four = s32[]{{:T(128)}} constant(4)
  ROOT %go = pred[]{{:T(512)}} compare(%t#0, %four), direction=LT
}}

ENTRY %main (w: bf16[4,128,512], k: f32[4,64], a: f32[64,128]) -> f32[128,64] {{
  %w = bf16[4,128,512]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %k = f32[4,64]{{1,0:T(4,128)}} parameter(1)
  %a = f32[64,128]{{1,0:T(8,128)}} parameter(2)
  %zero = s32[]{{:T(128)}} constant(0)
  %start = (s32[], bf16[4,128,512], f32[4,64]) tuple(%zero, %w, %k)
  %loop = (s32[], bf16[4,128,512], f32[4,64]) while(%start), condition=%condition, body=%body, metadata={{op_name="jit(f)/encoder/while"}}
  ROOT %b = f32[128,64]{{1,0:T(8,128)}} fusion(%a), kind=kLoop, calls=%moves, {cycles(500, "jit(f)/jvp(Model.encode)/frontend/transpose")}
}}
"""  # noqa: E501


def test_shares_and_floors_by_hand() -> None:
    shares = {share.part: share for share in time_shares(SHARED, CHIP)}
    clock = CLOCKS["v5e"]
    # Four turns. A fusion without a name has that of its product.
    product = shares["encoder"]
    assert (product.kind, product.phase, product.runs) == ("products", "backward", 4)
    assert product.seconds == pytest.approx(4 * 3000 / clock)
    # At the limits the bytes take longer than the FLOPs: the rows, one of four kernels and its
    # number are read, and the result stays in the core.
    read = (2 * (256 * 128 + 128 * 512) + 4) / CHIP.hbm_bandwidth
    assert read > 2 * 256 * 128 * 512 / CHIP.peak_flops
    assert product.floor == pytest.approx(4 * read)
    kept = shares["encoder/norm"]
    assert (kept.kind, kept.phase) == ("layout changes", "recomputed")
    # Its number is read, and one row is written in place.
    assert kept.floor == pytest.approx(4 * (4 + 4 * 64) / CHIP.hbm_bandwidth)
    moved = shares["frontend"]
    assert (moved.kind, moved.phase, moved.runs) == ("layout changes", "forward", 1)
    assert moved.floor == pytest.approx(2 * 4 * 64 * 128 / CHIP.hbm_bandwidth)
    assert sum(share.seconds for share in shares.values()) == compiler_seconds(SHARED, CHIP)
    [loop] = loop_times(SHARED, CHIP)
    assert (loop.name, loop.turns) == ("jit(f)/encoder/while", 4)
    assert loop.seconds == pytest.approx(4 * (3000 + 100) / clock)


def test_a_chip_whose_clock_is_unknown_has_no_seconds() -> None:
    chip = CHIPS["tpu7x"]
    assert compiler_seconds(SHARED, chip) is None
    assert time_shares(SHARED, chip) == ()
    assert [(loop.turns, loop.seconds) for loop in loop_times(SHARED, chip)] == [(4, 0.0)]


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes", "multiplications", "kind"),
    [
        pytest.param(
            "bf16[30,20]", "bf16[20,10]", "f32[30,10]", "dim_labels=bf_io->bf", 30 * 20 * 10,
            "products", id="a product",
        ),
        pytest.param(
            "f32[5,30,20]", "f32[5,30,7]", "f32[1,20,7]",
            "window={size=5}, dim_labels=0fb_0io->0bf",
            5 * 30 * 20 * 7, "products", id="a sum over two dimensions",
        ),
        pytest.param(
            "bf16[5,8,30,20]", "bf16[5,8,40,20]", "f32[5,8,30,40]",
            "window={size=5x8 stride=4x7 lhs_dilate=5x8}, dim_labels=01bf_01oi->01bf",
            5 * 8 * 30 * 40 * 20, "products", id="a batch of products",
        ),
        pytest.param(
            "bf16[5,8,20,30]", "bf16[5,8,20,40]", "f32[5,8,30,40]",
            "window={size=5x8 stride=5x8 pad=4_4x7_7 lhs_dilate=4x7 rhs_reversal=1x1}, "
            "dim_labels=01fb_01io->01bf",
            5 * 8 * 30 * 40 * 20, "products", id="a batch of products, written otherwise",
        ),
        pytest.param(
            "bf16[6,30,16,1]", "bf16[8,4,16,1]", "bf16[6,8,30,4]",
            "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->01bf",
            6 * 30 * 16 * 8 * 4, "products", id="a product with two dimensions of outputs",
        ),
        pytest.param(
            "bf16[9,2,6,3]", "bf16[3,3,3,4]", "bf16[5,2,2,4]",
            "window={size=3x3 stride=2x2 pad=1_1x0_0}, dim_labels=0b1f_01io->0b1f",
            # Of five windows over nine places with a place of padding, the outer ones meet two.
            (2 + 3 + 3 + 3 + 2) * (3 + 3) * 2 * 4 * 3, "convolutions", id="a convolution",
        ),
    ],
)  # fmt: skip
def test_multiplications_of_all_that_is_written_as_a_convolution(
    left: str, right: str, result: str, attributes: str, multiplications: int, kind: str
) -> None:
    module = parse_hlo(f"""HloModule one

ENTRY %main (a: {left}, b: {right}) -> {result} {{
  %a = {left} parameter(0)
  %b = {right} parameter(1)
  ROOT %y = {result} convolution(%a, %b), {attributes}, {cycles(7)}
}}
""")
    instructions = module.computations["main"]
    assert product_flops(instructions["y"], instructions) == 2 * multiplications
    assert [share.kind for share in time_shares(module, CHIP)] == [kind]


@pytest.mark.tpu_backend
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v4:2x2x1"])
def test_a_large_product_runs_near_the_peak(with_tpu_compiler, topology: str) -> None:
    program = (
        PROGRAM.format(topology=topology)
        + """
size = 8192
both = [array((size, size), (), "bfloat16")] * 2
found = compile_program(jax.jit(lambda a, b: a @ b).lower(*both), topology.chip)
from maestro_jax.planning.cycles import compiler_seconds
print(2 * size**3 / topology.chip.peak_flops / compiler_seconds(found.text, topology.chip))
"""
    )
    # By the compiler's cycles and the clock: between four fifths of the peak and all of it.
    assert 0.8 < float(with_tpu_compiler(program)) < 1.01


@pytest.mark.tpu_backend
def test_no_operation_is_faster_than_the_limits_of_the_chip(with_tpu_compiler) -> None:
    program = (
        PROGRAM.format(topology="v5e:2x2")
        + """
from maestro_jax.planning.cycles import compiler_seconds, loop_times, time_shares
LAYERS, ROWS, D, H = 3, 2048, 1024, 4096
def loss(w, x):
    def layer(x, w):
        with jax.named_scope("layer"):
            y = jax.nn.swish(x @ w[0]) @ w[1]
            return x + y / jnp.sqrt(jnp.mean(jnp.square(y), -1, keepdims=True)), None
    return jnp.mean(jax.lax.scan(jax.checkpoint(layer), x, w)[0].astype(jnp.float32))
w = (array((LAYERS, D, H), (), "bfloat16"), array((LAYERS, H, D), (), "bfloat16"))
x = array((4 * ROWS, D), ("data",), "bfloat16")
text = compile_program(jax.jit(jax.grad(loss)).lower(w, x), topology.chip).text
shares = time_shares(text, topology.chip)
print(json.dumps([
    compiler_seconds(text, topology.chip),
    [[s.kind, s.phase, s.part, s.seconds, s.floor] for s in shares],
    [[l.turns, l.seconds] for l in loop_times(text, topology.chip)],
    6 * 2 * LAYERS * ROWS * D * H / topology.chip.peak_flops,
]))
"""
    )
    seconds, shares, loops, products = json.loads(with_tpu_compiler(program))
    assert sum(share[3] for share in shares) == pytest.approx(seconds)
    for kind, phase, part, taken, floor in shares:
        assert floor <= 1.02 * taken, (kind, phase, part)
    # Two products forward, two again, four backward; the compiler may save the second one again.
    floors = sum(share[4] for share in shares if share[0] == "products")
    assert floors == pytest.approx(products * 7.5 / 6, rel=0.1)
    assert {share[1] for share in shares if share[2] == "layer"} >= {
        "forward",
        "backward",
        "recomputed",
    }
    assert [turns for turns, _ in loops if turns != 3] == []
    assert sum(taken for _, taken in loops) <= seconds
