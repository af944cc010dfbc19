"""What is read of the TPU compiler: memory and refusals."""

from __future__ import annotations

import json

import pytest

from maestro_jax.errors import UserError
from maestro_jax.planning import compiled as planning_compiled
from maestro_jax.planning.chips import GIB, parse_topology
from maestro_jax.planning.compiled import (
    compiler_devices,
    parse_live_ranges,
    part_of,
)

LIVE_RANGES = """
  Live ranges at 55 (peak):
    fusion{}: 900 bytes (cumulative: 900 bytes)
  Stack trace breakdown for peak usage: 1 000 bytes
    main.1_spmd (100.0%, total: 1 000 bytes, current: 0 bytes, remaining: 1 000 bytes)
      ├── jit(step)/jvp(Model.encode)/encoder/layer_0/dot_general{1} (60.0%, total: 600 bytes, current: 600 bytes, remaining: 400 bytes)
      ├── state (35.0%, total: 350 bytes, current: 0 bytes, remaining: 400 bytes)
      │   └── params (35.0%, total: 350 bytes, current: 0 bytes, remaining: 400 bytes)
      │       ├── kernel (25.0%, total: 250 bytes, current: 250 bytes, remaining: 150 bytes)
      │       └── bias (10.0%, total: 100 bytes, current: 100 bytes, remaining: 50 bytes)
      └── slice.3 (5.0%, total: 50 bytes, current: 50 bytes, remaining: 0 bytes)
"""  # noqa: E501


def test_the_buffers_of_the_peak_are_read_with_their_paths() -> None:
    buffers = parse_live_ranges(LIVE_RANGES)
    assert [(each.bytes, each.part) for each in buffers] == [
        (600, "encoder/layer_0"),
        (250, "state.params"),
        (100, "state.params"),
        (50, "other"),
    ]
    assert buffers[1].name == "state/params/kernel"
    assert sum(each.bytes for each in buffers) == 1000


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(train_step)/transpose(jvp(Maestro.lattices))/decoder/while/body/add", "decoder"),
        ("jit(train_step)/jvp(Maestro.encode_text)/text_encoder/layer_1/checkpoint/dot_general",
         "text_encoder/layer_1"),
        ("jit(train_step)/jvp()/reduce_sum", "objective"),
        ("state.opt_state[1].mu['decoder']['kernel']", "state.opt_state"),
        ("batch['speech']['audio']", "batch"),
        ("copy.3", "other"),
    ],
)  # fmt: skip
def test_the_part_of_an_operation(name: str, part: str) -> None:
    assert part_of(name) == part


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning_compiled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^the TPU compiler .*: pip install libtpu, .*--roofline"):
        compiler_devices(parse_topology("v5e:2x2"))


def test_gpus_have_no_compiler_to_ask() -> None:
    with pytest.raises(UserError, match="roofline"):
        compiler_devices(parse_topology("gpu:H100x8"))


PROGRAM = """
import json, dataclasses
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.compiled import DoesNotFit, TileTooLarge, quick_options
from maestro_jax.planning.compiled import compile_program, compiler_devices
from maestro_jax.planning.cycles import compiler_seconds

topology = parse_topology("{topology}")
mesh = Mesh(np.array(compiler_devices(topology)), ("data",))
def array(shape, spec, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
"""


@pytest.mark.tpu_backend
def test_arguments_and_results_are_those_of_the_shapes(with_tpu_compiler) -> None:
    program = (
        PROGRAM.format(topology="v5e:2x2")
        + """
def step(state, x):
    return state + x.sum(), x * 2
jitted = jax.jit(step, donate_argnums=0)
state = array((1024, 1024), (), "float32")
lowered = jitted.lower(state, array((4096, 1024), ("data",), "float32"))
found = compile_program(lowered, topology.chip)
print(json.dumps(dataclasses.asdict(found.memory)))
"""
    )
    memory = json.loads(with_tpu_compiler(program))
    mib = 2**20
    # The state of 4 MiB is written over; of the rows of 16 MiB a chip has 4, and as much comes out.
    assert memory["arguments"] == pytest.approx(8 * mib, rel=0.001)
    assert memory["results"] == pytest.approx(4 * mib, rel=0.001)
    assert memory["capacity"] == pytest.approx(15.75 * GIB)


@pytest.mark.tpu_backend
def test_a_tile_too_large_is_not_a_lack_of_memory(with_tpu_compiler) -> None:
    program = (
        PROGRAM.format(topology="v5p:2x2x1")
        + """
import logging, sys
log = logging.getLogger("maestro_jax")
log.addHandler(logging.StreamHandler(sys.stdout))
log.setLevel("INFO")
def noisy(key):
    return jax.random.gumbel(jax.random.wrap_key_data(key, impl="rbg"), (16, 750, 1024))
lowered = jax.jit(noisy).lower(array((4,), (), "uint32"))
small = {"xla_tpu_scoped_vmem_limit_kib": "256"}
try:
    compile_program(lowered, topology.chip, "the step", small)
except TileTooLarge as error:
    print(error)
from maestro_jax.planning.plan import _program
found = _program(lowered, topology, mesh, "the step", small)
print(found.fits, found.compiler_options)
"""
    )
    message, said, planned = with_tpu_compiler(program).strip().splitlines()
    assert message.startswith("the step has an operation of which one tile is too large for the ")
    assert "VMEM of a v5p chip (jit(noisy)/" in message
    assert said == "the step cannot be compiled with smaller tiles; compiling it as training does"
    assert planned == "True {}"


@pytest.mark.tpu_backend
def test_what_does_not_fit_is_one_line_with_what_asked_for_it(with_tpu_compiler) -> None:
    program = (
        PROGRAM.format(topology="v5e:2x2")
        + """
def loss(w, x):
    with jax.named_scope("encoder"):
        y = jnp.tanh(x @ w)
        z = jax.nn.softmax(y @ y.T)
    return jnp.sum(z @ jnp.sin(z.T))
lowered = jax.jit(jax.grad(loss)).lower(
    array((4096, 4096), (), "float32"), array((131072, 4096), ("data",), "float32"))
try:
    compile_program(lowered, topology.chip, "the step")
except DoesNotFit as error:
    print(json.dumps([str(error), error.needed, error.capacity, error.largest[0].part]))
"""
    )
    message, needed, capacity, part = json.loads(with_tpu_compiler(program))
    # A chip's rows of the products alone are 32768 x 131072 float32.
    assert needed > 32768 * 131072 * 4 > 0.9 * capacity
    assert part == "encoder"
    assert message.startswith("the step does not fit: it asks for ")
    assert "of the 15.75 GiB of a v5e chip" in message
    assert "encoder" in message
    assert "\n" not in message


@pytest.mark.tpu_backend
def test_a_quick_compilation_has_the_same_memory_and_collectives(with_tpu_compiler) -> None:
    program = (
        PROGRAM.format(topology="v6e:2x2")
        + """
from maestro_jax.planning.collectives import by_kind_and_axes, find_collectives
def loss(w, x):
    for _ in range(2):
        x = x + jax.nn.swish(x @ w["up"]) @ w["down"]
    return jnp.mean(jnp.square(x.astype(jnp.float32)))
w = {"up": array((1024, 4096), ("data",), "bfloat16"), "down": array((4096, 1024), (), "bfloat16")}
lowered = jax.jit(jax.grad(loss)).lower(w, array((4 * 3750, 1024), ("data",), "bfloat16"))
for options in ({}, quick_options(topology.chip)):
    found = compile_program(lowered, topology.chip, options=options)
    sent = by_kind_and_axes(find_collectives(found.text, {"data": 4}))
    sent = {str(key): size for key, size in sent.items()}
    print(json.dumps({**dataclasses.asdict(found.memory), "sent": sent}))
"""
    )
    exact, quick = map(json.loads, with_tpu_compiler(program).strip().splitlines())
    assert quick["code"] < exact["code"], "the option does nothing"
    assert quick["arguments"] == exact["arguments"]
    assert quick["sent"] == exact["sent"]
    assert sum(exact["sent"].values()) > 0
    assert quick["results"] == exact["results"]
    # Of what a chip has; the rest of what a plan calls free is code, which is less.
    assert abs(quick["temporaries"] - exact["temporaries"]) < 0.001 * exact["capacity"]
