"""The speech encoder: the lower Conformer stack, which only speech passes through.

Source: MAESTRO, section 2.1 and figure 1 (6 of the 24 layers); masking as in w2v-BERT, section 3.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.modules.conformer import ConformerStack
from maestro_jax.modules.languages import LanguageEmbedding
from maestro_jax.modules.partitioned import Dense


class SpeechEncoder(nn.Module):
    """Projection, masking and a Conformer stack.

    Attributes:
        stack: The Conformer blocks; its `features` is the model size.
        code_features: Size of the vectors that the contrastive loss compares.
        source_languages: Number of spoken languages with an embedding; 0 for none, as in the paper.
            Maestro-U tells its encoder the language.
        dropout: Rate after the input projection.
        dtype: The type computed in.
    """

    stack: ConformerStack
    code_features: int = 1024
    source_languages: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Create the layers."""
        # A bias of zero would make the input of fully masked frames exactly zero, where the
        # gradient of layer normalisation is hundreds of times larger than anywhere else.
        self.input_projection = Dense(
            self.stack.features,
            ("conv_out", "embed"),
            dtype=self.dtype,
            bias_init=nn.initializers.normal(0.1),
        )
        self.contrastive_projection = Dense(self.code_features, ("embed", "codes"))
        self.input_dropout = nn.Dropout(self.dropout)
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
        tap: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Encode speech.

        Args:
            features: `[batch, frames, conv_features]`, subsampled.
            mask: `[batch, frames]` bool, True = valid.
            language: `[batch]` ids of the language spoken, for an encoder that wants to know;
                negative where it is not known.
            masked_frames: `[batch, frames]` bool, where to hide the input behind random vectors
                (random stream `masking`).
            tap: A layer, counted from 1, whose output is wanted; None for the last.
            deterministic: No dropout.

        Returns:
            The paper's e_s and the tapped layer's output, `[batch, frames, features]` both.

        Raises:
            ValueError: The encoder wants a language and is given none.
        """
        x = self.input_projection(features.astype(self.dtype))
        if masked_frames is not None:
            # Random vectors, not one learned vector (w2v-BERT, section 3.3).
            hidden = 0.1 * jax.random.normal(self.make_rng("masking"), x.shape, jnp.float32)
            x = jnp.where(masked_frames[:, :, None], hidden.astype(x.dtype), x)
        if self.source_languages:
            x = self.language_embedding(x, language)
        x = self.input_dropout(x, deterministic=deterministic)
        return self.stack.with_tap(x, mask, language, tap=tap, deterministic=deterministic)

    def contrastive_context(self, tapped: jax.Array) -> jax.Array:
        """`[batch, frames, features]` to `[batch, frames, code_features]`, compared with codes."""
        return self.contrastive_projection(tapped.astype(jnp.float32))
