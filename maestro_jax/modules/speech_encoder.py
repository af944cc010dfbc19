"""The speech encoder: the lower Conformer stack, which only speech passes through.

Source: MAESTRO, section 2.1 and figure 1 (6 of the 24 layers); masking as in w2v-BERT, section 3.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.dropout import Dropout, sample
from maestro_jax.layers.languages import LanguageEmbedding
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.partitioned import Dense, parameter
from maestro_jax.precision import EXACT

MASK_VALUES = ("random", "learned", "zero")


class SpeechEncoder(nn.Module):
    """Projection, masking and a Conformer stack.

    Attributes:
        stack: The Conformer blocks; its `features` is the model size.
        code_features: Size of the vectors that the contrastive loss compares.
        mask_value: Replacement of a masked frame. `random`: a random vector for each
            (w2v-BERT, section 3.3). `learned`: one vector for all (wav2vec 2.0). `zero`: zeros
            before the projection.
        source_languages: Number of spoken languages with an embedding; 0 for none, as in the paper.
            Maestro-U tells its encoder the language.
        dropout: Rate after the input projection.
        dtype: Computation dtype.
    """

    stack: ConformerStack
    code_features: int = 1024
    mask_value: str = "random"
    source_languages: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses unknown choices."""
        super().__post_init__()
        if self.mask_value not in MASK_VALUES:
            raise ValueError(f"mask_value is {self.mask_value!r}; choose one of {MASK_VALUES}.")

    def setup(self) -> None:
        """Creates the layers."""
        # A bias of zero would make the input of fully masked frames exactly zero, where the
        # gradient of layer normalisation is hundreds of times larger than anywhere else.
        self.input_projection = Dense(
            self.stack.features,
            ("conv_out", "embed"),
            dtype=self.dtype,
            bias_init=nn.initializers.normal(0.1),
        )
        self.contrastive_projection = Dense(self.code_features, ("embed", "codes"), precision=EXACT)
        if self.mask_value == "learned":
            init, shape = nn.initializers.normal(0.1), (self.stack.features,)
            self.mask_vector = parameter(self, "mask_vector", init, ("embed",), shape)
        self.input_dropout = Dropout(self.dropout)
        if self.source_languages:
            self.language_embedding = LanguageEmbedding(
                self.source_languages, self.stack.features, self.dtype
            )

    def __call__(
        self,
        features: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        masked_frames: jax.Array | None = None,
        intermediate_layer: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes speech.

        Args:
            features: `[batch, frames, conv_features]`, subsampled.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` ids of the language spoken, for an encoder that uses it;
                negative where it is unknown.
            masked_frames: `[batch, frames]` bool, where to hide the input (`random` needs the
                random stream `masking`).
            intermediate_layer: A layer, counted from 1, whose output is wanted; None for the last.
            deterministic: No dropout.

        Returns:
            The paper's e_s and the intermediate layer's output, `[batch, frames, features]` both.

        Raises:
            ValueError: The encoder uses the language and is given none.
        """
        if masked_frames is not None and self.mask_value == "zero":
            # Before the projection, whose bias keeps the frame from being exactly zero.
            features = zero_padding(features, ~masked_frames)
        x = self.input_projection(features.astype(self.dtype))
        if masked_frames is not None and self.mask_value != "zero":
            if self.mask_value == "random":
                hidden = 0.1 * sample(jax.random.normal, self.make_rng("masking"), x.shape)
            else:
                hidden = self.mask_vector
            # Behind the projection and before the first block: what this frame held goes no
            # further.
            x = jnp.where(masked_frames[:, :, None], hidden.astype(x.dtype), x)
        if self.source_languages:
            x = self.language_embedding(x, language)
        x = self.input_dropout(x, deterministic=deterministic)
        return self.stack.with_intermediate(
            x, mask, language, layer=intermediate_layer, deterministic=deterministic
        )

    def contrastive_context(self, intermediate: jax.Array) -> jax.Array:
        """Maps `[batch, frames, features]` to `[batch, frames, code_features]` float32."""
        # In float32 and with an exact product: what is compared are cosines.
        return self.contrastive_projection(intermediate.astype(jnp.float32))
