"""Shallow fusion: a language model over the transducer's own labels helps to rank hypotheses.

With ``b`` the blank's probability at a node, a label arc factorises into "not the blank" and "this
label", and only the second factor is fused:

    fused(blank)   = log b
    fused(label v) = log(1 - b) + log P(v | not blank) - internal_weight * log P_internal(v)
                     + weight * log P_lm(v | labels so far) + length_bonus

The factors of "blank or label" are the transducer's alone: the language model has no opinion on
silence. Its surprise at every label still makes long texts dearer, which ``length_bonus`` offsets.
What is added depends on the labels and not on their alignment, so that it is the same for all paths
of a hypothesis:

    fused score = score + weight * (log P_lm(labels) + log P_lm(end | labels))
                  - internal_weight * log P_internal(labels) + length_bonus * number of labels

``P_internal`` is the label softmax of the joint network without an acoustic input, which only a
hybrid autoregressive transducer defines (Variani et al. 2020, arXiv 2003.07705, section 3.2).
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax

from maestro_jax.decoding.hypotheses import State


class LabelLm(Protocol):
    """A language model over the labels of the transducer."""

    def initial_state(self, rows: int) -> State:
        """The state before the first call: a pytree of arrays with a leading axis of `rows`."""
        ...

    def score(self, state: State, labels: jax.Array) -> tuple[jax.Array, State]:
        """Reads a label and says what comes next.

        Args:
            state: From `initial_state` or an earlier call.
            labels: Int32 `[rows]`; the blank in the first call, which begins a text.

        Returns:
            Natural log-probabilities `[rows, vocab]`, none above 0, and the new state, of the
            structure, shapes and types of the old. At the blank's id stands the log-probability
            that the text ends here; a model of endless text has 0 there.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """What is added to the transducer's scores; the formula is this file's.

    Attributes:
        lm: The language model; None for none.
        weight: Of its log-probabilities; not negative.
        length_bonus: Added for each label, in nats.
        internal_weight: Of the internal language model that is subtracted; not negative, and
            above 0 only for a model with the HAT factorisation.
    """

    lm: LabelLm | None = None
    weight: float = 0.3
    length_bonus: float = 0.0
    internal_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuses weights of the wrong sign."""
        if not (self.weight >= 0 and self.internal_weight >= 0):
            raise ValueError(
                "the weights of language models must not be negative: "
                f"weight {self.weight}, internal_weight {self.internal_weight}"
            )

    @property
    def only_lowers(self) -> bool:
        """Whether no label can raise a score, so that a search may stop early."""
        return self.length_bonus <= 0 and self.internal_weight == 0
