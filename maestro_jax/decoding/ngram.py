"""Scores tokens with a back-off n-gram model whose tables are on the device.

The n-grams are those of `backoff.BackoffModel`: sorted arrays in which the continuations of a
context are neighbours. Their size is that of the model, not contexts times vocabulary. The state
of a text is its longest listed context. The distribution of the next token is computed by backing
off, with the shortest context first: what a longer context lists overwrites what a shorter one
gave.

Contexts of the lowest orders list much of the vocabulary, and every chain of back-offs ends in
them. Their whole distributions are in a dense table of up to `DENSE` numbers: those of all contexts
of a small model, or of contexts of one token with a vocabulary of thousands of pieces.
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
"""Largest size of the dense table, in numbers (128 MiB); the empty context is always in it."""
_CHUNK = 128
"""Number of continuations of a context that are written at a time."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "log_probs", "first", "backoffs", "shorter", "dense"),
    meta_fields=("blank_id", "order", "dense_order", "widest"),
)
@dataclasses.dataclass(frozen=True)
class NgramLm:
    """An n-gram model: a `fusion.LabelLm`, and a pytree that can be passed to a jitted function.

    N-grams are numbered by length, and those of one length by their tokens. Context 0 is the empty
    one, and context n + 1 is n-gram n; the longest n-grams are not contexts.

    Attributes:
        tokens: The last token of every n-gram, `[n-grams]`, uint16 if the vocabulary allows it.
        log_probs: Its natural log-probability after the others, float32 `[n-grams]`.
        first: The first of the n-grams that continue each context, int32 `[contexts + 1]`; they end
            where those of the next context begin.
        backoffs: Natural logarithm of each context's weight, float32 `[contexts]`.
        shorter: Each context without its first token, int32 `[contexts]`.
        dense: The whole distributions of the first contexts, float32 `[dense contexts, vocab]`.
        blank_id: The token that begins and ends a text.
        order: Tokens of the longest n-gram.
        dense_order: Contexts of at most this many tokens are dense.
        widest: Largest number of n-grams that continue a context.
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
        """Converts a model to tables on the device.

        Args:
            model: The model.
            dense: Largest size of the dense table, in numbers; the empty context is always in it.
        """
        levels, vocab = model.levels, model.vocab_size
        starts = np.concatenate([[0], np.cumsum(model.counts)])  # First n-gram of each length.
        # The empty context, and all n-grams but the longest.
        nodes = 1 + starts[model.order - 1]
        tokens = np.concatenate([level.tokens for level in levels])
        width = np.uint16 if vocab <= 1 << 16 else np.int32
        first = np.zeros(nodes + 1, np.int64)
        # First context before the n-grams of each length: an n-gram of the length below.
        offsets = [0, *(1 + starts[: model.order - 1])]
        for level, offset in zip(levels, offsets, strict=True):
            # Counts of the continuations of each context, one place to the right: their running sum
            # is where those of each context begin.
            np.add.at(first, 1 + offset + level.prefixes, 1)
        widest = int(first.max())
        first = np.cumsum(first)
        backoffs = np.zeros(nodes, np.float32)
        shorter = np.zeros(nodes, np.int32)
        for at, level in enumerate(levels[:-1]):
            contexts = slice(1 + starts[at], 1 + starts[at + 1])
            backoffs[contexts] = level.backoffs
            shorter[contexts] = offsets[at] + level.suffixes
        fitting = [at for at in range(model.order) if (1 + starts[at]) * vocab <= dense]
        dense_order = max(fitting, default=0)
        table = np.empty((1 + starts[dense_order], vocab), np.float32)
        for at, level in enumerate(levels[: dense_order + 1]):
            contexts = slice(offsets[at], offsets[at] + (len(levels[at - 1]) if at else 1))
            if at:
                # Katz: back off to the shorter context everywhere, then overwrite what the context
                # lists. Shorter contexts are complete by then, as lengths go up.
                table[contexts] = table[shorter[contexts]] + backoffs[contexts, None]
            table[offsets[at] + level.prefixes, level.tokens] = level.log_probs
        return cls(
            tokens=jnp.asarray(tokens.astype(width)),
            log_probs=jnp.asarray(np.concatenate([level.log_probs for level in levels])),
            first=jnp.asarray(first.astype(np.int32)),
            backoffs=jnp.asarray(backoffs),
            shorter=jnp.asarray(shorter),
            # Because of rounded weights, a probability may exceed one a little.
            dense=jnp.asarray(np.minimum(table, 0.0)),
            blank_id=model.boundary,
            order=model.order,
            dense_order=dense_order,
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
        """Estimates a model from texts; see `kneser_ney.estimate`.

        Args:
            texts: Token ids of one text each, without blanks.
            vocab_size: Number of token ids, blank included.
            order: Tokens of the longest n-gram; 1 has no context.
            prune: Cut-offs of the counts, by length.
            blank_id: Token id of the blank.

        Raises:
            UserError: If there is no text, an id is not a label, or a number is out of its range.
        """
        return cls.from_model(
            kneser_ney.estimate(
                texts, vocab_size=vocab_size, order=order, prune=prune, boundary=blank_id
            )
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def initial_state(self, rows: int) -> jax.Array:
        """Returns the contexts before the first call, int32 `[rows]`."""
        return jnp.zeros(rows, jnp.int32)

    @jax.jit
    def score(self, state: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reads labels `[rows]`; returns scores of the next ones, `[rows, vocab]`, and contexts."""
        context = self._read(state, labels)
        return self._next(context), context

    def _read(self, context: jax.Array, labels: jax.Array) -> jax.Array:
        """Finds the longest listed context in which a context and a label end, int32 `[rows]`."""
        if self.order == 1:
            return context
        labels = labels.astype(jnp.int32)
        longest = jnp.zeros_like(context)
        for _ in range(self.order - 1):
            # Context n + 1 is n-gram n, unless that is one of the longest.
            extended = 1 + self._find(context, labels)
            is_context = (extended > 0) & (extended < len(self.shorter))
            longest = jnp.where((longest == 0) & is_context, extended, longest)
            # Drops the first token; the empty context maps to itself.
            context = self.shorter[context]
        # Every unigram is listed. The blank begins a new text.
        longest = jnp.where(longest == 0, 1 + labels, longest)
        return jnp.where(labels == self.blank_id, 1 + self.blank_id, longest)

    def _find(self, context: jax.Array, labels: jax.Array) -> jax.Array:
        """Finds the n-gram that continues a context by a label, by bisection; -1 if none."""
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

        # Bisection of n elements ends after bit_length(n) steps. All rows take as many, those that
        # are done without effect.
        low, _ = jax.lax.fori_loop(0, self.widest.bit_length(), halve, (low, end))
        is_listed = (low < end) & (self.tokens[low].astype(jnp.int32) == labels)
        return jnp.where(is_listed, low, -1)

    def _next(self, context: jax.Array) -> jax.Array:
        """Computes natural log-probabilities of the next token, `[rows, vocab]`."""
        # Back off until the context is dense; weights[i] is the sum of weights up to chain[i].
        chain, weights = [], [jnp.zeros(context.shape, jnp.float32)]
        for _ in range(self.order - 1 - self.dense_order):
            backs_off = context >= len(self.dense)
            chain.append(context)
            weights.append(weights[-1] + jnp.where(backs_off, self.backoffs[context], 0.0))
            context = jnp.where(backs_off, self.shorter[context], context)
        # [rows, vocab]; then from the shortest context to the longest, as longer ones overwrite.
        scores = self.dense[context] + weights[-1][:, None]
        for context, weight in zip(reversed(chain), reversed(weights[:-1]), strict=True):
            scores = self._overwrite(scores, context, weight)
        # Because of rounded weights, a probability may exceed one a little.
        return jnp.minimum(scores, 0.0)

    def _overwrite(self, scores: jax.Array, context: jax.Array, weight: jax.Array) -> jax.Array:
        """Overwrites scores `[rows, vocab]` where a context lists the token.

        Args:
            scores: The scores by shorter contexts.
            context: `[rows]`.
            weight: Log-weight of backing off to `context`, `[rows]`.
        """
        begin, end = self.first[context], self.first[context + 1]
        # The scores of dense contexts are complete.
        end = jnp.where(context >= len(self.dense), end, begin)
        places = jnp.arange(_CHUNK)

        def write(chunk: jax.Array, scores: jax.Array) -> jax.Array:
            # [rows, _CHUNK]. Indices behind the table are clamped by the gathers, and masked as
            # beyond `end`.
            ngrams = begin[:, None] + chunk * _CHUNK + places
            tokens = self.tokens[ngrams].astype(jnp.int32)
            # An index out of bounds is dropped.
            tokens = jnp.where(ngrams < end[:, None], tokens, scores.shape[1])
            listed = self.log_probs[ngrams] + weight[:, None]
            return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(
                scores, tokens, listed
            )

        chunks = (jnp.max(end - begin) + _CHUNK - 1) // _CHUNK
        return jax.lax.fori_loop(0, chunks, write, scores)
