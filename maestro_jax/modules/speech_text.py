"""What speech-text pretraining without durations adds to the model: one input, and two heads.

Source: SLAM (arXiv 2110.10329) feeds its upper layers with text at the rate of tokens, alone or
behind the speech that it transcribes, and predicts masked tokens at the top, and whether speech and
text belong together. Its text encoder is an embedding with sinusoidal positions and a layer
normalisation. Here it is MAESTRO's text encoder and a projection, so that methods can be compared
with the same encoders.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import Dense, constrain
from maestro_jax.layers.token_logits import TokenLogits


class TokenProjection(nn.Module):
    """A linear map from e_t to the width of the shared encoder, and a layer normalisation.

    e_s comes out of a layer normalisation, too. The bias of this one is the same at all tokens and
    at no frame, so that it serves as the embedding of the modality.

    Attributes:
        features: Size of the shared encoder's input.
        dtype: Computation dtype.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, embedded: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps e_t `[batch, tokens, text_features]` with its mask to `[batch, tokens, features]`.

        The output is zero on padding.
        """
        x = Dense(self.features, ("mlp", "embed"), dtype=self.dtype, name="output")(embedded)
        x = layer_norm(dtype=self.dtype, name="norm")(x)
        return constrain(zero_padding(x, mask), "batch", "frames", "act_embed")


class TokenHead(TokenLogits):
    """Scores per masked token, `[batch, tokens, vocab]`; output 0 is padding."""


class PairHead(nn.Module):
    """Whether speech and text belong together: one linear map.

    One logit is a softmax over two classes whose other logit is 0.

    Attributes:
        dropout: Dropout rate on the input.
    """

    dropout: float = 0.0

    @nn.compact
    def __call__(self, joint: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps vectors of pairs `[batch, features]` to float32 logits `[batch]`."""
        x = Dropout(self.dropout)(joint, deterministic=deterministic)
        # A single output, whose axis no device could split.
        return Dense(1, ("embed", None), name="output")(x.astype(jnp.float32))[:, 0]
