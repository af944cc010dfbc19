"""Shallow fusion: ranks hypotheses with a language model over the decoder's own labels.

With ``b`` the blank's probability at a node, a label arc factorises into "not the blank" and "this
label", and only the second factor is fused:

    fused(blank)   = log b
    fused(label v) = log(1 - b) + log P(v | not blank) - internal_weight * log P_internal(v)
                     + weight * log P_lm(v | labels so far) + length_bonus

Whether a blank or a label comes next is up to the transducer alone, since a language model knows
nothing of silence. The language model still penalises long texts, by its surprise at every label;
``length_bonus`` offsets this. The added terms depend on the labels and not on their alignment, so
that they are the same for all paths of a hypothesis:

    fused score = score + weight * (log P_lm(labels) + log P_lm(end | labels))
                  - internal_weight * log P_internal(labels) + length_bonus * number of labels

``P_internal``, the internal language model, is the joint network's softmax over the labels alone,
with the encoder's output replaced: by zeros, so that its term in the joint network vanishes
(Variani et al. 2020, arXiv 2003.07705, section 3.2, for the hybrid autoregressive transducer;
Meng et al. 2021, arXiv 2011.01991, ILME, for any), or the mean frame of the utterance (Zeyer et al.
2021, arXiv 2104.03006). It has no end of text, since the transducer does not emit one.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from maestro_jax.decoding.hypotheses import (
    State,
    add_beam_dim,
    flatten_beam_dim,
    unflatten_beam_dim,
)

INTERNAL_ENCODERS = ("zero", "mean")


class LabelLm(Protocol):
    """A language model over the labels of the decoder."""

    def initial_state(self, rows: int) -> State:
        """Returns the state before the first call: arrays with a leading axis of `rows`."""
        ...

    def score(self, state: State, labels: jax.Array) -> tuple[jax.Array, State]:
        """Reads one label per row and scores what comes next.

        Args:
            state: From `initial_state` or an earlier call.
            labels: int32 `[rows]`; the blank in the first call, as the beginning of text.

        Returns:
            Natural log-probabilities `[rows, vocab]`, none above 0, and the new state, with the
            structure, shapes and dtypes of the old. The entry of the blank is the log-probability
            that the text ends here; a model of endless text has 0 there.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusion:
    """The terms that are added to the decoder's scores, by the formula of this module.

    Attributes:
        lm: The language model; None for none.
        weight: Weight of its log-probabilities; not negative.
        length_bonus: Nats added per label.
        internal_weight: Weight of the internal language model that is subtracted; not negative.
            Only a transducer has one.
        internal_encoder: Replacement of the encoder's output there: `zero` or `mean`.
    """

    lm: LabelLm | None = None
    weight: float = 0.3
    length_bonus: float = 0.0
    internal_weight: float = 0.0
    internal_encoder: str = "zero"

    def __post_init__(self) -> None:
        """Raises a `ValueError` for a negative weight or an unknown choice."""
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
        """Returns whether no label can raise a score, so that a search can stop early."""
        return self.length_bonus <= 0 and self.internal_weight == 0

    @property
    def active_lm(self) -> LabelLm | None:
        """Returns the language model, unless its weight is 0."""
        return self.lm if self.weight else None

    def initial_lm_state(self, shape: tuple[int, int]) -> State:
        """Returns the language model's state before the first label, `[batch, beam, ...]`.

        Args:
            shape: Batch and beam.
        """
        lm = self.active_lm
        return () if lm is None else add_beam_dim(lm.initial_state(shape[0]), shape[1])

    def score_next(self, lm_state: State, labels: jax.Array) -> tuple[jax.Array, State]:
        """Reads one label per hypothesis and scores the next one with the language model.

        Args:
            lm_state: State of `[batch, beam, ...]`.
            labels: int32 `[batch, beam]`.

        Returns:
            Weighted log-probabilities, float32 `[batch, beam, vocab]`, and the new state. Without a
            language model the scores are `[batch, beam, 0]`.
        """
        lm = self.active_lm
        if lm is None:
            return jnp.zeros((*labels.shape, 0), jnp.float32), lm_state
        shape = (labels.shape[0], labels.shape[1])
        scores, lm_state = lm.score(flatten_beam_dim(lm_state), labels.reshape(-1))
        scores, lm_state = unflatten_beam_dim((scores, lm_state), shape)
        return self.weight * scores.astype(jnp.float32), lm_state
