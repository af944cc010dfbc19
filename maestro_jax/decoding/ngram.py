"""A back-off n-gram model over token ids whose tables lie on the device.

A context is a row of two dense tables: the log-probability of every next token, and the context
that one arrives in by it. Backing off is done once, on the host, when the rows are made, so that a
step of a search is two look-ups. The price is tables of `contexts * vocab` numbers, and `MAX_TABLE`
the limit, which letters and small inventories of pieces do not reach.

Probabilities are Witten-Bell's (Witten and Bell 1991; Chen and Goodman 1998, section 2.6): with
``c(h, v)`` how often ``v`` follows ``h``, ``c(h)`` the sum and ``n(h)`` the number of different
followers,

    P(v | h) = (c(h, v) + n(h) P(v | h without its first token)) / (c(h) + n(h))

down to the uniform distribution over the vocabulary below the empty context. The end of a text is
one of the tokens; it has the blank's id, as `fusion.LabelLm` says.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.errors import UserError

MAX_TABLE = 1 << 27
"""Numbers in a table, at most: 512 MiB."""

_Context = tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("log_probs", "next_context"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class NgramLm:
    """An n-gram model; a `fusion.LabelLm`, and a pytree that a jitted function may take.

    Context 0 is the beginning of a text; the first call, with the blank, stays there.

    Attributes:
        log_probs: Natural log-probability of the next token, float32 `[contexts, vocab]`; at the
            blank's id that of the end.
        next_context: Where a token leads, int32 `[contexts, vocab]`; the blank leads to 0.
    """

    log_probs: jax.Array
    next_context: jax.Array

    @classmethod
    def estimate(
        cls,
        texts: Iterable[Sequence[int]],
        *,
        vocab_size: int,
        order: int = 3,
        blank_id: int = 0,
    ) -> NgramLm:
        """Counts and smooths.

        Args:
            texts: Token ids of one text each, without blanks.
            vocab_size: Number of token ids, blank included.
            order: Tokens of the longest n-gram; 1 knows no context.
            blank_id: The token id of the blank.

        Raises:
            UserError: There is no text, an id is not a label, or the tables would be too large.
        """
        if order < 1:
            raise UserError(f"the order of an n-gram model must be at least 1, not {order}")
        counts: dict[_Context, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        read = 0
        for text in texts:
            read += 1
            # The blank begins and ends a text; n-grams do not reach over a beginning.
            tokens = [blank_id, *text, blank_id]
            for at in range(1, len(tokens)):
                token = tokens[at]
                if at < len(tokens) - 1 and (token == blank_id or not 0 <= token < vocab_size):
                    raise UserError(
                        f"token {token} is no label of a vocabulary of {vocab_size} "
                        f"with blank {blank_id}"
                    )
                for length in range(min(order - 1, at) + 1):
                    counts[tuple(tokens[at - length : at])][token] += 1
        if not read:
            raise UserError("there is no text to estimate a language model from")

        # The start comes first; shorter contexts before those that back off to them.
        start: _Context = (blank_id,) if order > 1 else ()
        contexts = [start, *sorted(counts.keys() - {start}, key=lambda c: (len(c), c))]
        if len(contexts) * vocab_size > MAX_TABLE:
            raise UserError(
                f"a language model of {len(contexts)} contexts and {vocab_size} tokens is larger "
                f"than {MAX_TABLE} numbers; take a lower order than {order} or less text"
            )
        place = {context: index for index, context in enumerate(contexts)}
        probabilities = np.empty((len(contexts), vocab_size))
        following = np.empty((len(contexts), vocab_size), np.int32)
        uniform = np.full(vocab_size, 1.0 / vocab_size)
        for context in sorted(contexts, key=len):
            index = place[context]
            shorter = probabilities[place[context[1:]]] if context else uniform
            found = counts[context]
            probabilities[index] = len(found) * shorter
            for token, count in found.items():
                probabilities[index, token] += count
            probabilities[index] /= sum(found.values()) + len(found)
            # Where a token leads is where it leads from the shorter context, unless it was seen.
            following[index] = following[place[context[1:]]] if context else place[()]
            for token in found:
                longest = (*context, token)[max(0, len(context) + 2 - order) :]
                following[index, token] = place.get(longest if order > 1 else (), -1)
            following[index, blank_id] = 0
        return cls(jnp.asarray(np.log(probabilities), jnp.float32), jnp.asarray(following))

    def initial_state(self, rows: int) -> jax.Array:
        """The beginning of a text, int32 `[rows]`."""
        return jnp.zeros(rows, jnp.int32)

    def score(self, state: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Reads labels `[rows]`; what comes next, `[rows, vocab]`, and the contexts `[rows]`."""
        context = self.next_context[state, labels]
        return self.log_probs[context], context
