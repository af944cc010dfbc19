"""Conditioning on the language: an embedding added to each frame, and residual adapters.

Source of adapters: Houlsby et al. 2019 (arXiv 1902.00751), in the form of Bapna and Firat 2019
(arXiv 1909.08478): layer normalisation, down, rectifier, up, added to the residual stream.
Maestro-U (arXiv 2210.10027) has both in its encoder. The last map of an adapter begins at zero, so
that a model that gets adapters computes at first what it did before.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import constrain, embedding, parameter


class LanguageEmbedding(nn.Module):
    """A learned vector per language.

    Attributes:
        languages: Number of languages; ids are below it.
        features: Size of the vectors.
        dtype: Computation dtype.
    """

    languages: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, language: jax.Array | None) -> jax.Array:
        """Adds the embedding of the row's language to each frame.

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
        # A negative id would count from the end of the table: it looks up 0, and its vector is
        # dropped.
        added = table(jnp.maximum(language, 0))
        added = jnp.where((language >= 0)[:, None], added, jnp.zeros((), added.dtype))
        return x + added[:, None, :].astype(x.dtype)


class ResidualAdapter(nn.Module):
    """x + up(relu(down(norm(x)))), with weights that the row's language chooses.

    Attributes:
        bottleneck: Size between the two maps.
        languages: Number of sets of weights, one per language id; 0 for one set for all rows.
        dtype: Computation dtype.
    """

    bottleneck: int
    languages: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, language: jax.Array | None = None) -> jax.Array:
        """Adapts a batch.

        Args:
            x: `[batch, frames, features]`.
            language: `[batch]` int32 ids, below `languages`; a row with a negative one has no
                known language and stays as it is. Ignored by a shared set.

        Returns:
            `[batch, frames, features]`.

        Raises:
            ValueError: There is a set per language, and no language is given.
        """
        if self.languages and language is None:
            raise ValueError(
                f"these adapters have a set for each of {self.languages} languages: "
                "say which language each row is in."
            )
        features = x.shape[-1]
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        lecun = nn.initializers.variance_scaling(
            1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
        )
        # The small side of each map stays whole: split, it would only cause communication.
        scale = self._weights("scale", ones, (features,), ("embed",), language)
        shift = self._weights("bias", zeros, (features,), ("embed",), language)
        down = self._weights(
            "down_kernel", lecun, (features, self.bottleneck), ("embed", None), language
        )
        down_bias = self._weights("down_bias", zeros, (self.bottleneck,), (None,), language)
        up = self._weights(
            "up_kernel", zeros, (self.bottleneck, features), (None, "embed"), language
        )
        up_bias = self._weights("up_bias", zeros, (features,), ("embed",), language)

        # Layer normalisation written out, as its scale and shift differ from row to row.
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + 1e-5)
        y = (y * scale[:, None] + shift[:, None]).astype(self.dtype)
        # The weights are [batch or 1, ...]: where all rows share them, einsum broadcasts the 1.
        y = jnp.einsum("bfe,bed->bfd", y, down.astype(self.dtype))
        y = nn.relu(y + down_bias[:, None].astype(self.dtype))
        y = jnp.einsum("bfd,bde->bfe", y, up.astype(self.dtype))
        y = y + up_bias[:, None].astype(self.dtype)
        if self.languages and language is not None:
            # The residual alone where the language is unknown.
            y = jnp.where((language >= 0)[:, None, None], y, jnp.zeros((), y.dtype))
        return constrain(x + y.astype(x.dtype), "batch", "frames", "act_embed")

    def _weights(
        self,
        name: str,
        init: nn.initializers.Initializer,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        language: jax.Array | None,
    ) -> jax.Array:
        """Returns a parameter for each row, or one for all: `[batch or 1, *shape]`."""
        sets = max(self.languages, 1)
        value = parameter(self, name, init, (None, *axes), (sets, *shape))
        if not self.languages or language is None:
            return value
        return value[jnp.clip(language, 0, sets - 1)]
