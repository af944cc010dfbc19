"""A back-off n-gram model over token ids whose tables lie on the device.

The n-grams are those of `backoff.BackoffModel`: sorted arrays in which the continuations of a
context are neighbours, numbers of the size of the model and not of contexts times vocabulary. The
state of a text is its longest context that is listed. What comes next is found by backing off from
it, shortest context first, so that what a longer one lists is written over what a shorter one says.

Contexts of the lowest orders list much of the vocabulary, and are met at the end of every chain.
They have their whole distribution in a dense table, as far as `DENSE` numbers go: all contexts of
a small model, those of one token at thousands of pieces.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.decoding import kneser_ney
from maestro_jax.decoding.backoff import BackoffModel

DENSE = 1 << 25
"""Numbers in the dense table, at most: 128 MiB. The distribution without a context always fits."""
_CHUNK = 128
"""Continuations of a context that are written at a time."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "log_probs", "first", "backoffs", "shorter", "dense"),
    meta_fields=("blank_id", "order", "dense_order", "widest"),
)
@dataclasses.dataclass(frozen=True)
class NgramLm:
    """An n-gram model; a `fusion.LabelLm`, and a pytree that a jitted function may take.

    N-grams are numbered by length, and those of one length by their tokens. Context 0 is empty, and
    context n + 1 is n-gram n; n-grams of the longest kind are no contexts.

    Attributes:
        tokens: The last token of every n-gram, `[n-grams]`, uint16 where that is enough.
        log_probs: Its natural log-probability after the others, float32 `[n-grams]`.
        first: The n-grams that continue a context begin here and end where those of the next one
            begin, int32 `[contexts + 1]`.
        backoffs: Natural logarithm of each context's weight, float32 `[contexts]`.
        shorter: Each context without its first token, int32 `[contexts]`.
        dense: The whole distribution of the first contexts, float32 `[some, vocab]`.
        blank_id: The token that begins and ends a text.
        order: Tokens of the longest n-gram.
        dense_order: Contexts of so many tokens or fewer are dense.
        widest: The most n-grams that continue a context.
    """

    tokens: jax.Array
    log_probs: jax.Array
    first: jax.Array
    backoffs: jax.Array
    shorter: jax.Array
    dense: jax.Array
    blank_id: int
    order: int
    dense_order: int
    widest: int

    @classmethod
    def from_model(cls, model: BackoffModel, *, dense: int = DENSE) -> NgramLm:
        """Lays a model out for the device.

        Args:
            model: The model.
            dense: Numbers in the dense table, at most; that of the empty context is always there.
        """
        levels, vocab = model.levels, model.vocab_size
        starts = np.concatenate([[0], np.cumsum(model.counts)])  # Of the n-grams of each length.
        nodes = 1 + starts[model.order - 1]
        tokens = np.concatenate([level.tokens for level in levels])
        width = np.uint16 if vocab <= 1 << 16 else np.int32
        first = np.zeros(nodes + 1, np.int64)
        # The context before the n-grams of a length is an n-gram of the length below.
        offsets = [0, *(1 + starts[: model.order - 1])]
        for level, offset in zip(levels, offsets, strict=True):
            np.add.at(first, 1 + offset + level.prefixes, 1)
        widest = int(first.max())
        first = np.cumsum(first)
        backoffs = np.zeros(nodes, np.float32)
        shorter = np.zeros(nodes, np.int32)
        for at, level in enumerate(levels[:-1]):
            here = slice(1 + starts[at], 1 + starts[at + 1])
            backoffs[here] = level.backoffs
            shorter[here] = offsets[at] + level.suffixes
        fitting = [at for at in range(model.order) if (1 + starts[at]) * vocab <= dense]
        whole = max(fitting, default=0)  # Contexts of so many tokens are dense.
        table = np.empty((1 + starts[whole], vocab), np.float32)
        for at, level in enumerate(levels[: whole + 1]):
            here = slice(offsets[at], offsets[at] + (len(levels[at - 1]) if at else 1))
            if at:
                table[here] = table[shorter[here]] + backoffs[here, None]
            table[offsets[at] + level.prefixes, level.tokens] = level.log_probs
        return cls(
            tokens=jnp.asarray(tokens.astype(width)),
            log_probs=jnp.asarray(np.concatenate([level.log_probs for level in levels])),
            first=jnp.asarray(first.astype(np.int32)),
            backoffs=jnp.asarray(backoffs),
            shorter=jnp.asarray(shorter),
            # Rounded weights may leave the sum of a distribution a little above one.
            dense=jnp.asarray(np.minimum(table, 0.0)),
            blank_id=model.boundary,
            order=model.order,
            dense_order=whole,
            widest=widest,
        )

    @classmethod
    def estimate(
        cls,
        texts: Iterable[Sequence[int]],
        *,
        vocab_size: int,
        order: int = 3,
        prune: Sequence[int] = (),
        blank_id: int = 0,
    ) -> NgramLm:
        """Counts and smooths; see `kneser_ney.estimate`.

        Args:
            texts: Token ids of one text each, without blanks.
            vocab_size: Number of token ids, blank included.
            order: Tokens of the longest n-gram; 1 knows no context.
            prune: Cut-offs of the counts, by length.
            blank_id: The token id of the blank.

        Raises:
            UserError: There is no text, an id is not a label, or a number is out of its range.
        """
        return cls.from_model(
            kneser_ney.estimate(
                texts, vocab_size=vocab_size, order=order, prune=prune, boundary=blank_id
            )
        )

    @property
    def nbytes(self) -> int:
        """Of all tables."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def initial_state(self, rows: int) -> jax.Array:
        """Contexts before the first call, int32 `[rows]`."""
        return jnp.zeros(rows, jnp.int32)

    @jax.jit
    def score(self, state: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reads labels `[rows]`; what comes next, `[rows, vocab]`, and the contexts `[rows]`."""
        context = self._read(state, labels)
        return self._next(context), context

    def _read(self, context: jax.Array, labels: jax.Array) -> jax.Array:
        """The longest context that the texts so far and a label end in."""
        if self.order == 1:
            return context
        labels = labels.astype(jnp.int32)
        arrived = jnp.zeros_like(context)
        for _ in range(self.order - 1):
            # The context of n-gram n; the longest n-grams are no contexts.
            longer = 1 + self._find(context, labels)
            is_context = (longer > 0) & (longer < len(self.shorter))
            arrived = jnp.where((arrived == 0) & is_context, longer, arrived)
            context = self.shorter[context]
        arrived = jnp.where(arrived == 0, 1 + labels, arrived)
        return jnp.where(labels == self.blank_id, 1 + self.blank_id, arrived)

    def _find(self, context: jax.Array, labels: jax.Array) -> jax.Array:
        """The n-gram that continues a context by a label, -1 where none does, int32 `[rows]`."""
        low, end = self.first[context], self.first[context + 1]

        def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            before = self.tokens[middle].astype(jnp.int32) < labels
            is_open = low < high
            return (
                jnp.where(is_open & before, middle + 1, low),
                jnp.where(is_open & ~before, middle, high),
            )

        low, _ = jax.lax.fori_loop(0, self.widest.bit_length(), halve, (low, end))
        there = (low < end) & (self.tokens[low].astype(jnp.int32) == labels)
        return jnp.where(there, low, -1)

    def _next(self, context: jax.Array) -> jax.Array:
        """Natural log-probabilities of what follows contexts `[rows]`, `[rows, vocab]`."""
        chain, weights = [], [jnp.zeros(context.shape, jnp.float32)]
        for _ in range(self.order - 1 - self.dense_order):
            backs_off = context >= len(self.dense)
            chain.append(context)
            weights.append(weights[-1] + jnp.where(backs_off, self.backoffs[context], 0.0))
            context = jnp.where(backs_off, self.shorter[context], context)
        scores = self.dense[context] + weights[-1][:, None]
        for context, weight in zip(reversed(chain), reversed(weights[:-1]), strict=True):
            scores = self._overwrite(scores, context, weight)
        # Rounded weights may leave a probability a little above one.
        return jnp.minimum(scores, 0.0)

    def _overwrite(self, scores: jax.Array, context: jax.Array, weight: jax.Array) -> jax.Array:
        """Writes what contexts list, after backing off to them, over the scores."""
        begin, end = self.first[context], self.first[context + 1]
        # Dense contexts are done.
        end = jnp.where(context >= len(self.dense), end, begin)
        places = jnp.arange(_CHUNK)

        def write(chunk: jax.Array, scores: jax.Array) -> jax.Array:
            ngrams = begin[:, None] + chunk * _CHUNK + places
            tokens = self.tokens[ngrams].astype(jnp.int32)
            # What is beyond the end is written nowhere.
            tokens = jnp.where(ngrams < end[:, None], tokens, scores.shape[1])
            listed = self.log_probs[ngrams] + weight[:, None]
            return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
                scores, tokens, listed
            )

        chunks = (jnp.max(end - begin) + _CHUNK - 1) // _CHUNK
        return jax.lax.fori_loop(0, chunks, write, scores)
