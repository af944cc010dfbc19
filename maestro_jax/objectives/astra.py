"""ASTRA (Gaur et al. 2024, arXiv 2406.06664): matching by the transducer's own alignments.

Text enters the shared encoder at the rate of its tokens. A token is drawn to the speech frames that
may emit it, each in proportion to its posterior in the RNN-T's lattice: the consistency objective
L_c, a weighted RNN-T loss (`maestro_jax.losses.expected_distance`). Nothing is sampled to a length
and no duration is learned; the lattice is that of the RNN-T loss on the pairs, so that aligning
takes no pass of its own.

The paper finds the mean absolute error (MAE) the better distance. Chosen here, as for MAESTRO's
matching in this package: features are standardised first, and the speech is the target.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.distances import DISTANCES
from maestro_jax.losses.expected_distance import expected_distance
from maestro_jax.losses.matching import STOPPED, prepared
from maestro_jax.losses.reduction import Weighted
from maestro_jax.objectives.decoder_losses import Lattice
from maestro_jax.objectives.duration_sources import DurationSource, FixedRepetition
from maestro_jax.objectives.text_losses import refuse_unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Astra:
    """`MaestroPretraining.matching` of tokens with the frames that may emit them.

    Attributes:
        form: `mae`, `mse` or `cosine`.
        stop_gradient: The side that is the target and does not learn: `speech`, `text` or `none`.
        normalize: Standardise both sides over features first.
    """

    form: str = "mae"
    stop_gradient: str = "speech"
    normalize: bool = True
    unit = "distance per label"
    of_shared_encoder = False

    def __post_init__(self) -> None:
        """Refuses unknown choices before anything is built."""
        refuse_unknown(self, form=DISTANCES, stop_gradient=STOPPED)

    def check(self, durations: DurationSource) -> None:
        """Refuses text that is not at the rate of its tokens."""
        if durations != FixedRepetition(frames=1):
            raise UserError(
                "Astra compares one vector per token; set DURATIONS to "
                "@duration_sources.FixedRepetition() and FixedRepetition.frames to 1."
            )

    def loss(
        self,
        speech: jax.Array,
        speech_mask: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        lattice: Lattice,
    ) -> Weighted:
        """Computes the expected distance; see `DurationFreeMatching.loss`."""
        del speech_mask, text_mask
        return expected_distance(
            *prepared(speech, text, self.stop_gradient, self.normalize),
            lattice.posterior,
            lattice.frame_lengths,
            # An example without a path has no posteriors, and does not count in the RNN-T loss.
            jnp.where(lattice.feasible, lattice.label_lengths, 0),
            form=self.form,
        )
