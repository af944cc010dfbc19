"""Measures an n-gram model for the search: bytes, time to estimate it, time of a look-up.

    python benchmarks/language_model.py                     # a million sentences, 4096 pieces
    python benchmarks/language_model.py --sentences 20000   # some seconds

Sentences are drawn from a Markov chain with Zipf's law: each piece has a random order of followers,
the n-th of which has a probability proportional to 1 / n, so that short n-grams recur and long ones
are mostly new, as in texts. A look-up reads a label in each row of a beam and returns
log-probabilities of all pieces; the rows are contexts of the sentences. The lower bound of its time
is a table with a row for every context, for which only small models have room.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.backoff import BackoffModel
from maestro_jax.decoding.ngram import NgramLm

LIMIT = 1 << 30
LONGEST_TABLE = 1 << 28
"""Maximum size of the tables of the lower bound, 2 GiB together."""


def sentences(count: int, pieces: int, mean: int, seed: int = 0) -> Iterator[list[int]]:
    """Draws sentences of a Markov chain, with uniform lengths from 1 to twice the mean."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, pieces)
    cumulative = np.cumsum(weights / weights.sum())
    # The followers of a piece are one fixed permutation, rotated by an amount per piece.
    order = rng.permutation(np.arange(1, pieces))
    turns = (rng.zipf(1.3, pieces) % (pieces - 1)).astype(np.int64)
    for start in range(0, count, 4096):
        rows = min(4096, count - start)
        lengths = rng.integers(1, 2 * mean, size=rows)
        now = np.zeros(rows, np.int64)
        columns = []
        for _ in range(2 * mean):
            rank = np.minimum(np.searchsorted(cumulative, rng.random(rows)), pieces - 2)
            now = order[(rank + turns[now]) % (pieces - 1)]
            columns.append(now)
        for row, length in zip(np.stack(columns, axis=1).tolist(), lengths, strict=True):
            yield row[:length]


def dense_tables(model: BackoffModel) -> tuple[jax.Array, jax.Array] | None:
    """Returns log-probabilities and next contexts of all contexts, `[contexts, pieces]`."""
    contexts = 1 + sum(model.counts[:-1])
    if 2 * contexts * model.vocab_size > LONGEST_TABLE:
        return None
    lm = NgramLm.from_model(model, dense=LONGEST_TABLE)
    follow = np.stack(
        [
            np.asarray(lm.score(jnp.arange(contexts), jnp.full(contexts, label))[1])
            for label in range(model.vocab_size)
        ],
        axis=1,
    )
    return lm.dense, jnp.asarray(follow)


def seconds_of(step: Callable[[], object], repeats: int) -> float:
    """Returns the best of the repeats, each of ten calls."""
    jax.block_until_ready(step())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for _ in range(10):
            jax.block_until_ready(step())
        times.append((time.perf_counter() - begun) / 10)
    return min(times)


def main() -> None:
    """Prints one line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--pieces", type=int, default=4096)
    parser.add_argument("--mean", type=int, default=20, help="mean number of pieces per sentence")
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument(
        "--prune", default="0", help="pruning thresholds by n-gram length, such as 0,0,1"
    )
    parser.add_argument("--rows", type=int, default=32, help="rows of a look-up: batch times beam")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    begun, worked = time.perf_counter(), time.process_time()
    texts = sentences(arguments.sentences, arguments.pieces, arguments.mean)
    model = kneser_ney.estimate(
        texts,
        vocab_size=arguments.pieces,
        order=arguments.order,
        prune=tuple(int(n) for n in arguments.prune.split(",")),
    )
    made, worked = time.perf_counter(), time.process_time() - worked
    lm = jax.block_until_ready(NgramLm.from_model(model))
    laid_out = time.perf_counter()
    counts = ", ".join(f"{count:,} of {n}" for n, count in enumerate(model.counts, start=1))
    print(f"n-grams: {counts}")
    print(
        f"drawn, counted and smoothed in {made - begun:.1f} s ({worked:.1f} s of processor time), "
        f"laid out in {laid_out - made:.1f} s"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"memory of the process at its highest: {peak / 2**30:.2f} GiB")
    print(f"tables: {lm.nbytes / 2**20:.0f} MiB of at most {LIMIT / 2**20:.0f} MiB")
    contexts = 1 + sum(model.counts[:-1])
    table = 8 * contexts * arguments.pieces
    print(f"a dense table of its {contexts:,} contexts: {table / 2**30:.1f} GiB")

    # Contexts as in a search: some labels into sentences that were not counted.
    rng = np.random.default_rng(1)
    heard = [t for t in sentences(8 * arguments.rows, arguments.pieces, arguments.mean, seed=2)]
    heard = [t for t in heard if len(t) > 8][: arguments.rows]
    state = lm.initial_state(len(heard))
    for labels in np.array([[0, *t[:7]] for t in heard]).T:
        _, state = lm.score(state, jnp.asarray(labels))
    labels = jnp.asarray([t[7] for t in heard])
    step = jax.jit(lambda lm, state, labels: lm.score(state, labels))
    took = seconds_of(lambda: step(lm, state, labels), arguments.repeats)
    print(f"a look-up of {len(heard)} rows: {1e3 * took:.2f} ms")
    tables = dense_tables(model)
    if tables is None:
        rows = jnp.asarray(rng.normal(size=(4096, arguments.pieces)), jnp.float32)
        tables = (rows, jnp.asarray(rng.integers(0, 4096, size=rows.shape), jnp.int32))
        state = state % 4096
        print("the dense table has no room; its time is that of a table of 4096 contexts")
    read = jax.jit(lambda log_probs, follow, state, labels: log_probs[follow[state, labels]])
    took = seconds_of(lambda: read(*tables, state, labels), arguments.repeats)
    print(f"the same from a dense table: {1e3 * took:.2f} ms")


if __name__ == "__main__":
    main()
