"""Compares parts of the training step with plainer versions, by the TPU compiler's cycles.

    pip install libtpu
    python benchmarks/tpu_cycles.py                      # v5e, the sizes of models/xl.gin
    python benchmarks/tpu_cycles.py --topology v4:2x2x1

No TPU is needed: each part is compiled ahead of time for one device of the topology, as a program
of its own, and the seconds are those that `maestro plan` prints of a whole step. The plainer
versions are what docs/decisions.md (N20 to N22) decided against.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maestro_jax.layers import lstm
from maestro_jax.losses import transducer_joint, transducer_lattice
from maestro_jax.losses.transducer_arcs import blank_label_log_probs
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.compiled import compile_program, compiler_devices
from maestro_jax.planning.cycles import compiler_seconds
from maestro_jax.tables import table

UNITS, JOINT, PIECES = 1280, 640, 4096
"""Sizes of models/xl.gin, with a vocabulary of word pieces."""


def plain_recurrence(
    gates: jax.Array, recurrent: jax.Array, hidden: jax.Array, cell: jax.Array
) -> jax.Array:
    """The loop of an LSTM whose gradient is left to JAX."""

    def step(carry: lstm.LstmState, gate: jax.Array) -> tuple[lstm.LstmState, jax.Array]:
        total = (gate + carry[0].astype(recurrent.dtype) @ recurrent).astype(jnp.float32)
        carry = lstm._cell(total, carry[1])
        return carry, carry[0]

    return jax.lax.scan(step, (hidden, cell), gates)[1]


def by_gather(
    logits: jax.Array, labels: jax.Array, blank_id: int, hat: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`blank_label_log_probs` with a gather of the labels' logits."""
    blank, _, normaliser = blank_label_log_probs(logits, labels, blank_id, hat)
    chosen = jnp.take_along_axis(logits[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    return blank, chosen - normaliser[..., :-1], normaliser


@contextlib.contextmanager
def gathering() -> Iterator[None]:
    """Lets the joint network gather."""
    with unittest.mock.patch.object(transducer_joint, "blank_label_log_probs", by_gather):
        yield


@contextlib.contextmanager
def one_wavefront() -> Iterator[None]:
    """Lets lattices take one wavefront per turn."""

    def by_platform(function: Callable[..., Any], *arrays: Any) -> Any:
        return function(*arrays, turns=1)

    with unittest.mock.patch.object(transducer_lattice, "by_platform", by_platform):
        yield


def main() -> None:
    """Compiles the parts in both versions and prints their seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--topology", default="v5e:2x2", help="as of maestro plan (default: v5e:2x2)"
    )
    topology = parse_topology(parser.parse_args().topology)
    mesh = Mesh(np.array(compiler_devices(topology)[:1]), ("data",))

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def milliseconds(function: Callable[..., Any], arrays: list[jax.ShapeDtypeStruct]) -> float:
        compiled = compile_program(jax.jit(function).lower(*arrays), topology.chip)
        seconds = compiler_seconds(compiled.text, topology.chip)
        assert seconds is not None, f"the clock of {topology.chip.name} is not known"
        return 1e3 * seconds

    rows: list[dict[str, Any]] = []

    def compare(part: str, size: str, ours: float, plainer: float, other: str) -> None:
        rows.append(
            {
                "part": part,
                "size": size,
                "ms": round(ours, 2),
                "plainer, ms": round(plainer, 2),
                "ratio": round(ours / plainer, 2),
                "plainer": other,
            }
        )

    half, full, whole = jnp.bfloat16, jnp.float32, jnp.int32

    def states(steps: int, batch: int) -> list[jax.ShapeDtypeStruct]:
        return [
            array(half, steps, batch, 4 * UNITS),
            array(half, UNITS, 4 * UNITS),
            *[array(full, batch, UNITS)] * 2,
        ]

    def gradient(function: Callable[..., jax.Array], *places: int) -> Callable[..., Any]:
        """The gradient of a sum that weighs the result with the last argument."""
        return jax.value_and_grad(
            lambda *arrays: jnp.sum(function(*arrays[:-1]) * arrays[-1]), places
        )

    def outputs(*arrays: jax.Array) -> jax.Array:
        return lstm.recurrence(*arrays)[0]

    weighed = [*states(257, 5), array(full, 257, 5, UNITS)]
    compare(
        "LSTM, gradient",
        "257 steps, 5 rows, 1280 units",
        *(milliseconds(gradient(each, 0, 1), weighed) for each in (outputs, plain_recurrence)),
        "JAX's gradient of the loop",
    )
    compare(
        "LSTM, forward",
        "257 steps, 1 row, 1280 units",
        *(milliseconds(each, states(257, 1)) for each in (outputs, plain_recurrence)),
        "the row alone",
    )

    def joint(*arrays: jax.Array) -> jax.Array:
        blank, label = transducer_joint.joint_lattices(*arrays)
        return blank + jnp.pad(label, ((0, 0), (0, 0), (0, 1)))

    sizes = [
        *(array(half, 4, 400, JOINT), array(half, 4, 257, JOINT)),
        *(array(full, JOINT, PIECES), array(full, PIECES), array(whole, 4, 256)),
        array(full, 4, 400, 257),
    ]
    ours = milliseconds(gradient(joint, 0, 1, 2, 3), sizes)
    with gathering():
        plainer = milliseconds(gradient(joint, 0, 1, 2, 3), sizes)
    size = "4 texts, 400 frames, 256 labels, 4096 pieces"
    compare("joint network, gradient", size, ours, plainer, "labels' logits by a gather")

    for batch, frames in ((4, 400), (1, 750)):
        sizes = [
            *(array(full, batch, frames, 257), array(full, batch, frames, 256)),
            *[array(whole, batch)] * 2,
            array(full, batch),
        ]
        ours = milliseconds(gradient(transducer_lattice.lattice_loss, 0, 1), sizes)
        with one_wavefront():
            plainer = milliseconds(gradient(transducer_lattice.lattice_loss, 0, 1), sizes)
        size = f"{batch} x {frames} frames, 256 labels"
        compare("lattice, loss and gradient", size, ours, plainer, "one wavefront per turn")
    print(table(rows))


if __name__ == "__main__":
    main()
