"""The shared encoder: the upper Conformer stack, which speech and text both pass through.

Source: MAESTRO, section 2.1 and figure 1 (18 of the 24 layers).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.layers.languages import LanguageEmbedding
from maestro_jax.layers.partitioned import Dense, embedding


class SharedEncoder(nn.Module):
    """A Conformer stack, a head that predicts codes, and optionally the language to write.

    Attributes:
        stack: The Conformer blocks; its `features` is the model size.
        codes: Entries of a codebook of the quantizer, predicted at the top.
        codebooks: Number of codebooks, each with a softmax of its own.
        languages: Number of output languages that can be asked for; 0 for a model that cannot be
            told (the paper's recognisers). Needed where one decoder transcribes and translates.
        source_languages: Number of languages spoken or written at the input with an embedding; 0
            for none, as in the paper. Maestro-U tells its encoder the language.
        dtype: Computation dtype.
    """

    stack: ConformerStack
    codes: int = 1024
    codebooks: int = 1
    languages: int = 0
    source_languages: int = 0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the layers."""
        self.code_head = Dense(self.codebooks * self.codes, ("embed", "codes"))
        if self.languages:
            self.language_embedding = embedding(
                self.languages, self.stack.features, rows=None, dtype=self.dtype
            )
        if self.source_languages:
            self.source_embedding = LanguageEmbedding(
                self.source_languages, self.stack.features, self.dtype
            )

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        language: jax.Array | None = None,
        *,
        intermediate_layer: int | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes e_s or the masked ê_t.

        Args:
            x: `[batch, frames, features]`.
            mask: `[batch, frames]` bool, True = valid.
            target_language: `[batch]` language ids of the text to produce, negative for the
                language that is spoken; ignored by a model without languages.
            language: `[batch]` ids of the language spoken or written at the input, for an encoder
                that uses it; negative where it is unknown.
            intermediate_layer: A layer, counted from 1, whose output is wanted; None for the last.
            deterministic: No dropout.

        Returns:
            The top and the intermediate layer's output, `[batch, frames, features]` both.

        Raises:
            ValueError: The encoder uses the language and is given none.
        """
        if self.languages and target_language is not None:
            # A negative id asks for no translation: it looks up 0, and its vector is dropped.
            target = self.language_embedding(jnp.maximum(target_language, 0))
            target = jnp.where((target_language >= 0)[:, None], target, jnp.zeros((), target.dtype))
            x = x + target[:, None, :].astype(x.dtype)
        if self.source_languages:
            x = self.source_embedding(x, language)
        return self.stack.with_intermediate(
            x, mask, language, layer=intermediate_layer, deterministic=deterministic
        )

    def code_logits(self, encoded: jax.Array) -> jax.Array:
        """Maps `[batch, frames, features]` to float32 `[batch, frames, codebooks * codes]`."""
        # In float32, whatever the encoder computes in: a softmax over thousands of codes follows.
        return self.code_head(encoded.astype(jnp.float32))
