"""Times joint network and transducer loss with all gradients, in chunks and as a whole lattice.

Both sides compute `tanh(frames + predictions) @ kernel + bias`, the transducer loss, and the
gradients of frames, predictions, kernel and bias. The whole-lattice side is the straightforward
implementation: the logits of all nodes are one array, `[batch, frames, labels + 1, vocab]`.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rows import Bar, Row, Table, size_text
from timing import Contender, progress, take_turns

SIZES = ((8, 250, 60, 1024, 640), (4, 200, 40, 4096, 640), (16, 75, 40, 64, 128))
"""Batch, frames, labels, vocabulary, joint features; the last is that of `gin/models/tiny.gin`."""

MEMORY_BAR = Bar(limit=0.03, at_most=True)
TIME_BAR = Bar(limit=1.35, at_most=True)
_MIB = 2**20


def measure(sizes: Sequence[tuple[int, ...]], repeats: int, cores: int) -> Table:
    """Measures time and temporary memory of both sides; the bars are for the first of `SIZES`."""
    rows: list[Row] = []
    for size in sizes:
        text = size_text(size, "BTUVH")
        progress(f"joint and loss, {text}: compiling both")
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sides = {
                side: stack.enter_context(
                    Contender(
                        "joint_loss",
                        {"side": side, "size": size, "outputs": str(folder / f"{side}.npz")},
                        cores=cores,
                    )
                )
                for side in ("fused", "whole")
            }
            worst = worst_difference(folder / "fused.npz", folder / "whole.npz")
            progress(f"  losses and gradients agree to {worst:.1e}; {repeats} repeats")
            times = take_turns(sides, repeats)
        fused, whole = sides["fused"].report, sides["whole"].report
        judged = tuple(size) == SIZES[0]
        ours, theirs = times["fused"], times["whole"]
        rows += [
            Row(
                what="value and gradient",
                size=text,
                ours=ours.best,
                unit="s",
                peer_name="whole lattice",
                peer=theirs.best,
                ratio=ours.best / theirs.best,
                bar=TIME_BAR if judged else None,
                note=f"medians {ours.median:.3g} and {theirs.median:.3g} s; compiled in "
                f"{fused['compile_seconds']:.2g} and {whole['compile_seconds']:.2g} s; "
                f"agree to {worst:.0e}",
            ),
            Row(
                what="temporary memory",
                size=text,
                ours=fused["temp_bytes"] / _MIB,
                unit="MiB",
                peer_name="whole lattice",
                peer=whole["temp_bytes"] / _MIB,
                ratio=fused["temp_bytes"] / whole["temp_bytes"],
                percent=True,
                bar=MEMORY_BAR if judged else None,
                note="`memory_analysis().temp_size_in_bytes`",
            ),
        ]
    return Table(f"Joint network and loss, {cores} cores", "ours / peer", tuple(rows))


def worst_difference(ours: pathlib.Path, theirs: pathlib.Path, tolerance: float = 1e-4) -> float:
    """Returns the largest relative difference between two files of arrays with the same names.

    Raises:
        AssertionError: If it is over the tolerance: a time of a wrong answer means nothing.
    """
    worst = 0.0
    with np.load(ours) as left, np.load(theirs) as right:
        assert sorted(left) == sorted(right), f"{sorted(left)} and {sorted(right)}"
        for name in left:
            difference = relative_difference(left[name], right[name])
            assert difference <= tolerance, f"{name} differs by {difference:.1e}"
            worst = max(worst, difference)
    return worst


def relative_difference(array: np.ndarray, reference: np.ndarray) -> float:
    """Returns the largest difference over the largest magnitude: gradients have many zeros."""
    return float(np.abs(array - reference).max() / np.abs(reference).max())


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares one side, `fused` or `whole`."""
    import jax
    import jax.numpy as jnp

    from maestro_jax.losses.transducer import joint_transducer_loss, transducer_loss

    batch, frames, labels, vocab, features = job["size"]
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32))

    arrays = (
        normal(batch, frames, features),
        normal(batch, labels + 1, features),
        normal(features, vocab, scale=features**-0.5),
        normal(vocab),
    )
    targets = (
        jnp.asarray(rng.integers(1, vocab, (batch, labels)), jnp.int32),
        jnp.asarray(np.linspace(frames, 0.75 * frames, batch), jnp.int32),
        jnp.asarray(np.linspace(0.75 * labels, labels, batch), jnp.int32),
    )

    def whole(
        x: jax.Array, y: jax.Array, kernel: jax.Array, bias: jax.Array, *targets: jax.Array
    ) -> jax.Array:
        hidden = jnp.tanh(x[:, :, None] + y[:, None])
        # As a matrix: XLA's backward pass of a product with four axes is slower on CPU.
        logits = hidden.reshape(-1, features) @ kernel + bias
        return transducer_loss(logits.reshape(*hidden.shape[:-1], vocab), *targets)

    loss = joint_transducer_loss if job["side"] == "fused" else whole

    def total(*arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = loss(*arguments)
        return losses.sum(), losses

    start = time.perf_counter()
    step = (
        jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
        .lower(*arrays, *targets)
        .compile()
    )
    compile_seconds = time.perf_counter() - start
    analysis = step.memory_analysis()
    (_, losses), gradients = step(*arrays, *targets)
    names = ("loss", "frames", "predictions", "kernel", "bias")
    np.savez(job["outputs"], **dict(zip(names, (losses, *gradients), strict=True)))
    report = {"compile_seconds": compile_seconds, "temp_bytes": analysis.temp_size_in_bytes}
    return report, lambda: jax.block_until_ready(step(*arrays, *targets))
