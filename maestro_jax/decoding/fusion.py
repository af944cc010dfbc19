"""Shallow fusion: ranks hypotheses with a language model over the decoder's own labels.

With ``b`` the blank's probability at a node, a label arc factorises into "not the blank" and "this
label", and only the second factor is fused:

    fused(blank)   = log b
    fused(label v) = log(1 - b) + log P(v | not blank) - internal_weight * log P_internal(v)
                     + weight * log P_lm(v | labels so far) + length_bonus
                     + phrases_weight * bonus of v on the way through a phrase

Whether a blank or a label comes next is up to the transducer alone, since a language model knows
nothing of silence. The language model still penalises long texts, by its surprise at every label;
``length_bonus`` offsets this. The added terms depend on the labels and not on their alignment, so
that they are the same for all paths of a hypothesis:

    fused score = score + weight * (log P_lm(labels) + log P_lm(end | labels))
                  - internal_weight * log P_internal(labels) + length_bonus * number of labels
                  + phrases_weight * bonus of the phrases in the labels (`decoding.phrases`)

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
from maestro_jax.decoding.phrases import PhraseBias

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
        phrases: Phrases that raise the scores of hypotheses that contain them; None for none.
        phrases_weight: Weight of their bonuses; not negative.

    Numbers may be traced arrays, whose terms are then computed whatever they are.
    """

    lm: LabelLm | None = None
    weight: float | jax.Array = 0.3
    length_bonus: float | jax.Array = 0.0
    internal_weight: float | jax.Array = 0.0
    internal_encoder: str = "zero"
    phrases: PhraseBias | None = None
    phrases_weight: float | jax.Array = 1.0

    def __post_init__(self) -> None:
        """Raises a `ValueError` for a negative weight or an unknown choice."""
        weights = (self.weight, self.internal_weight, self.phrases_weight)
        # A traced number was checked before it was.
        if not all(weight >= 0 for weight in weights if isinstance(weight, (int, float))):
            raise ValueError(
                "the weights of language models and phrases must not be negative: "
                f"weight {self.weight}, internal_weight {self.internal_weight}, "
                f"phrases_weight {self.phrases_weight}"
            )
        if self.internal_encoder not in INTERNAL_ENCODERS:
            raise ValueError(
                f"internal_encoder is {self.internal_encoder!r}; choose one of "
                f"{', '.join(INTERNAL_ENCODERS)}"
            )

    @property
    def only_lowers(self) -> bool:
        """Returns whether it is certain that no label raises a score: a search can stop early."""
        bonus = self.length_bonus
        lowers = isinstance(bonus, (int, float)) and bonus <= 0
        return lowers and not self.subtracts_internal and not self._biases

    @property
    def subtracts_internal(self) -> bool:
        """Returns whether the internal language model is subtracted."""
        return not _is_zero(self.internal_weight)

    @property
    def largest_gain(self) -> float | jax.Array:
        """Returns the most that one label can add to a score, but for the internal model."""
        gain = jnp.maximum(self.length_bonus, 0.0)
        if self.phrases is not None:
            gain += self.phrases_weight * self.phrases.largest_gain
        return gain

    @property
    def scores_labels(self) -> bool:
        """Returns whether the next label is scored by the labels before it."""
        return bool(self._scorers)

    @property
    def _biases(self) -> bool:
        return self.phrases is not None and not _is_zero(self.phrases_weight)

    @property
    def _scorers(self) -> tuple[tuple[LabelLm, float | jax.Array], ...]:
        """The language model and the phrases with their weights, unless these are 0."""
        scorers: list[tuple[LabelLm, float | jax.Array]] = []
        if self.lm is not None and not _is_zero(self.weight):
            scorers.append((self.lm, self.weight))
        if self.phrases is not None and self._biases:
            scorers.append((self.phrases, self.phrases_weight))
        return tuple(scorers)

    def initial_state(self, shape: tuple[int, int]) -> State:
        """Returns the state before the first label, `[batch, beam, ...]`.

        Args:
            shape: Batch and beam.
        """
        return tuple(
            add_beam_dim(scorer.initial_state(shape[0]), shape[1]) for scorer, _ in self._scorers
        )

    def score_next(self, state: State, labels: jax.Array) -> tuple[jax.Array, State]:
        """Reads one label per hypothesis and scores the next one.

        Args:
            state: State of `[batch, beam, ...]`.
            labels: int32 `[batch, beam]`.

        Returns:
            Weighted log-probabilities and bonuses, float32 `[batch, beam, vocab]`, and the new
            state; the entry of the blank is what the end of the text adds. The scores are
            `[batch, beam, 0]` with neither a language model nor phrases.
        """
        if not self._scorers:
            return jnp.zeros((*labels.shape, 0), jnp.float32), state
        shape = (labels.shape[0], labels.shape[1])
        total, states = jnp.zeros(()), []
        for (scorer, weight), old in zip(self._scorers, state, strict=True):
            scores, new = scorer.score(flatten_beam_dim(old), labels.reshape(-1))
            scores, new = unflatten_beam_dim((scores, new), shape)
            total = total + weight * scores.astype(jnp.float32)
            states.append(new)
        return total, tuple(states)


def _is_zero(number: float | jax.Array) -> bool:
    """Returns whether a number is known to be 0; a traced one is not."""
    return isinstance(number, (int, float)) and number == 0
