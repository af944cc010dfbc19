"""Telling an encoder which language it is about, by adding a vector to each of its frames."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import embedding


class LanguageEmbedding(nn.Module):
    """A learned vector a language.

    Attributes:
        languages: Number of languages; ids are below it.
        features: Size of the vectors.
        dtype: The type computed in.
    """

    languages: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, language: jax.Array | None) -> jax.Array:
        """Add the row's language to each frame.

        Args:
            x: `[batch, frames, features]`.
            language: `[batch]` int32 ids; nothing is added where they are negative.

        Returns:
            `[batch, frames, features]`.

        Raises:
            ValueError: There is no language.
        """
        if language is None:
            raise ValueError(
                f"the model was built with embeddings of {self.languages} source languages: "
                "say which language each row is in."
            )
        table = embedding(self.languages, self.features, rows=None, dtype=self.dtype, name="table")
        added = table(jnp.maximum(language, 0))
        added = jnp.where((language >= 0)[:, None], added, jnp.zeros((), added.dtype))
        return x + added[:, None, :].astype(x.dtype)
