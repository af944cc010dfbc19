"""Times the loss and its gradient from given logits, against torchaudio and warprnnt-numba.

The peers may be installed under another Python: their side of this file imports only NumPy and
them.

Before the timing, all contenders are compared with a float64 reference: the losses must agree to
1e-4, and so must our gradient. A peer's gradient must agree to 1e-2, and its error is printed,
since torchaudio computes alphas and betas of a thousand nats in float32.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from joint_loss import relative_difference
from reference_loss import reference
from rows import Bar, Row, Table, size_text
from timing import Contender, ContenderError, available_cores, progress, take_turns
from torchaudio_beside_cpu_torch import REMEDY, load_torchaudio

SIZES = ((4, 200, 40, 1024), (4, 200, 40, 500), (2, 100, 20, 64))
"""Batch, frames, labels, vocabulary."""

TORCHAUDIO_BAR = Bar(limit=10.0)
SMALL_ENOUGH = 500_000
"""Maximum number of logits for warprnnt-numba, whose CPU path loops in Python."""


def measure(sizes: Sequence[tuple[int, ...]], repeats: int, peers_python: str) -> Table:
    """Compares ours with each installed peer on one and two cores; bar: first of `SIZES`."""
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for size in sizes:
        for cores in sorted({1, min(2, available_cores())}):
            with contextlib.ExitStack() as stack:
                rows += _one_size(stack, size, repeats, cores, peers_python, missing)
    remarks = tuple(f"{peer} was not measured: {why}" for peer, why in missing.items())
    return Table("Loss from ready logits", "times faster", tuple(rows), remarks)


def _one_size(
    stack: contextlib.ExitStack,
    size: tuple[int, ...],
    repeats: int,
    cores: int,
    peers_python: str,
    missing: dict[str, str],
) -> list[Row]:
    text = f"{size_text(size, 'BTUV')}, {cores} core{'s' * (cores > 1)}"
    progress(f"loss from logits, {text}")
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def start(library: str, python: str) -> Contender:
        job = {"library": library, "size": size, "outputs": str(folder / f"{library}.npz")}
        return stack.enter_context(Contender("logits_loss", job, cores=cores, python=python))

    contenders = {"ours": start("ours", sys.executable)}
    peers = ["torchaudio"]
    if np.prod(size) <= SMALL_ENOUGH:
        peers.append("warprnnt-numba")
    exact = _reference(size)
    error = {"ours": _error(folder / "ours.npz", exact, of_gradient=1e-4)}
    for peer in peers:
        if peer in missing:
            continue
        try:
            contenders[peer] = start(peer, peers_python)
        except ContenderError as why:
            if not why.missing:
                raise
            missing[peer] = str(why)
            progress(f"  {peer} is left out: {why}")
            continue
        error[peer] = _error(folder / f"{peer}.npz", exact, of_gradient=1e-2)
    progress(
        "  gradients are off float64 by "
        + ", ".join(f"{value:.1e} ({name})" for name, value in error.items())
    )
    times = take_turns(contenders, repeats)
    ours = times["ours"]
    compiled = f"compiled in {contenders['ours'].report['compile_seconds']:.2g} s"
    if len(contenders) == 1:
        return [Row(what="value and gradient", size=text, ours=ours.best, unit="s", note=compiled)]
    return [
        Row(
            what="value and gradient",
            size=text,
            ours=ours.best,
            unit="s",
            peer_name=peer,
            peer=times[peer].best,
            ratio=times[peer].best / ours.best,
            bar=TORCHAUDIO_BAR if peer == "torchaudio" and tuple(size) == SIZES[0] else None,
            note=f"medians {1000 * ours.median:.3g} and {1000 * times[peer].median:.3g} ms; "
            f"{compiled}; gradients off float64 by {error['ours']:.0e} and {error[peer]:.0e}",
        )
        for peer in contenders
        if peer != "ours"
    ]


def _inputs(size: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Draws logits, labels and full lengths, the same in every process."""
    batch, frames, labels, vocab = size
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((batch, frames, labels + 1, vocab), np.float32),
        rng.integers(1, vocab, (batch, labels)).astype(np.int32),
        np.full(batch, frames, np.int32),
        np.full(batch, labels, np.int32),
    )


@functools.lru_cache(maxsize=1)
def _reference(size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return reference(*_inputs(size)[:2])


def _error(
    outputs: pathlib.Path, exact: tuple[np.ndarray, np.ndarray], *, of_gradient: float
) -> float:
    """Returns the error of a gradient; asserts that it and that of the loss are small enough."""
    with np.load(outputs) as found:
        losses, gradient = (
            relative_difference(found[name], wanted)
            for name, wanted in zip(("loss", "gradient"), exact, strict=True)
        )
    assert losses <= 1e-4, f"{outputs.stem}: the losses differ by {losses:.1e}"
    assert gradient <= of_gradient, f"{outputs.stem}: the gradients differ by {gradient:.1e}"
    return gradient


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares `ours`, `torchaudio` or `warprnnt-numba`; the loss is the sum over the batch."""
    inputs = _inputs(job["size"])
    load = _ours if job["library"] == "ours" else _peer
    start = time.perf_counter()
    run = load(inputs, job["library"], job["cores"])
    losses, gradient = run()
    compile_seconds = time.perf_counter() - start
    np.savez(job["outputs"], loss=np.asarray(losses), gradient=np.asarray(gradient))
    return {"compile_seconds": compile_seconds}, run


Run = Callable[[], tuple[Any, Any]]


def _ours(inputs: tuple[np.ndarray, ...], library: str, cores: int) -> Run:
    import jax
    import jax.numpy as jnp

    from maestro_jax.losses.transducer import transducer_loss

    arrays = [jnp.asarray(array) for array in inputs]

    def total(*arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = transducer_loss(*arguments)
        return losses.sum(), losses

    step = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run() -> tuple[Any, Any]:
        (_, losses), gradient = jax.block_until_ready(step(*arrays))
        return losses, gradient

    return run


def _peer(inputs: tuple[np.ndarray, ...], library: str, cores: int) -> Run:
    torchaudio = load_torchaudio() if library == "torchaudio" else None
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"PyTorch is missing; {REMEDY}") from error

    torch.set_num_threads(cores)
    logits, *targets = (torch.from_numpy(array) for array in inputs)
    logits.requires_grad_(True)
    if torchaudio is not None:
        loss = _silently(torchaudio.functional.rnnt_loss)
    else:
        try:
            from warprnnt_numba import RNNTLossNumba
        except ImportError as error:
            raise ImportError(f"warprnnt-numba is missing; {REMEDY}") from error
        numba_loss = RNNTLossNumba(blank=0, reduction="none")

        def loss(*arguments: Any, **_: Any) -> Any:
            return numba_loss(*arguments)

    def run() -> tuple[Any, Any]:
        logits.grad = None
        losses = loss(logits, *targets, blank=0, reduction="none")
        losses.sum().backward()
        return losses.detach(), logits.grad

    return run


def _silently(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hides the notice that some versions print at every call."""
    import warnings

    def quiet(*arguments: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **options)

    return quiet
