"""Best-alignment consistency (Peyser et al. 2023, arXiv 2308.06125): matching without durations.

Speech and text pass through the shared encoder, and their outputs are drawn together along the
monotonic alignment under which they are closest
(`maestro_jax.losses.best_alignment`). Text is brought to a similar rate by repetition, as in JOIST,
or not at all; no duration is learned and no alignment of the transducer is needed.

The paper is read from its abstract and summaries. They say that representations of the joint
encoder are compared, and that the best alignment is assumed. Chosen here, as for MAESTRO's matching
in this package: squared error of standardised features, with the speech as the target.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.best_alignment import best_alignment_loss
from maestro_jax.losses.distances import DISTANCES
from maestro_jax.losses.matching import STOPPED, prepared
from maestro_jax.losses.reduction import Weighted
from maestro_jax.objectives.decoder_losses import Lattice
from maestro_jax.objectives.duration_sources import DurationSource
from maestro_jax.objectives.text_losses import refuse_unknown

ENCODERS = ("shared", "speech")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestAlignment:
    """`MaestroPretraining.matching` along the best monotonic alignment.

    Attributes:
        encoder: Whose outputs are compared: `shared`, those of the shared encoder for speech and
            for text, which takes another pass of the text; or `speech`, those of the speech encoder
            with the refined text at the entrance of the shared one, as in MAESTRO.
        form: `mse`, `mae` or `cosine`.
        stop_gradient: The side that is the target and does not learn: `speech`, `text` or `none`.
        normalize: Standardise both sides over features first.
    """

    encoder: str = "shared"
    form: str = "mse"
    stop_gradient: str = "speech"
    normalize: bool = True
    unit = "distance per pair"

    def __post_init__(self) -> None:
        """Refuses unknown choices before anything is built."""
        refuse_unknown(self, encoder=ENCODERS, form=DISTANCES, stop_gradient=STOPPED)

    @property
    def of_shared_encoder(self) -> bool:
        """Returns whether outputs of the shared encoder are compared."""
        return self.encoder == "shared"

    def check(self, durations: DurationSource) -> None:
        """Refuses durations that would have to be learned, since nothing teaches them."""
        if durations.max_token_frames is None:
            raise UserError(
                "BestAlignment learns no durations; set DURATIONS to "
                "@duration_sources.FixedRepetition() or RandomRepetition()."
            )

    def loss(
        self,
        speech: jax.Array,
        speech_mask: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        lattice: Lattice,
    ) -> Weighted:
        """Computes the distance along the best alignment; see `DurationFreeMatching.loss`."""
        del lattice
        return best_alignment_loss(
            *prepared(speech, text, self.stop_gradient, self.normalize),
            jnp.sum(speech_mask, axis=1),
            jnp.sum(text_mask, axis=1),
            form=self.form,
        )
