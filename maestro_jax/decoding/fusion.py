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

``P_internal``, the internal language model, is the softmax over the labels alone of the joint
network with something in the place of the encoder: nothing, so that its term in the joint network
is 0 (Variani et al. 2020, arXiv 2003.07705, section 3.2, for the hybrid autoregressive transducer;
Meng et al. 2021, arXiv 2011.01991, ILME, for any), or the mean frame of the utterance (Zeyer et al.
2021, arXiv 2104.03006). It has no end of a text, which the transducer does not write.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax

from maestro_jax.decoding.hypotheses import State

INTERNAL_ENCODERS = ("zero", "mean")


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
        internal_weight: Of the internal language model that is subtracted; not negative. Only the
            transducer has one.
        internal_encoder: What stands in the encoder's place there: `zero` or `mean`.
    """

    lm: LabelLm | None = None
    weight: float = 0.3
    length_bonus: float = 0.0
    internal_weight: float = 0.0
    internal_encoder: str = "zero"

    def __post_init__(self) -> None:
        """Refuses weights of the wrong sign, and an unknown choice."""
        if not (self.weight >= 0 and self.internal_weight >= 0):
            raise ValueError(
                "the weights of language models must not be negative: "
                f"weight {self.weight}, internal_weight {self.internal_weight}"
            )

        if self.internal_encoder not in INTERNAL_ENCODERS:
            raise ValueError(
                f"internal_encoder is {self.internal_encoder!r}; choose one of "
                f"{', '.join(INTERNAL_ENCODERS)}"
            )

    @property
    def only_lowers(self) -> bool:
        """Whether no label can raise a score, so that a search may stop early."""
        return self.length_bonus <= 0 and self.internal_weight == 0
