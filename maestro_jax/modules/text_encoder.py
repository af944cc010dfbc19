"""The text embedding extractor: from tokens to embeddings at token rate (e_t).

Source: MAESTRO, section 2.2: three convolutional layers of 512 filters, kernel (5, 1), then six
Transformer layers with positional embedding, as in Parallel Tacotron. No source says what stands
between the convolutions or inside the layers; here it is layer normalisation and a rectifier, and
the pre-normalised layers of the Conformer's feed-forward networks.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.conformer import FeedForward
from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.masking import zero_padding
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import Dense, constrain, embedding
from maestro_jax.layers.positions import sinusoids
from maestro_jax.layers.rematerialisation import Policy, check_policy, rematerialised, scan_layers


class TransformerBlock(nn.Module):
    """Pre-normalised self-attention and feed-forward layers.

    Attributes:
        heads: Attention heads.
        hidden: Size of the feed-forward layer.
        dropout: Rate of each residual branch.
        dtype: Computation dtype.
    """

    heads: int
    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps `[batch, positions, features]` with mask `[batch, positions]` to the same shape."""
        y = layer_norm(dtype=self.dtype, name="attention_norm")(x)
        y = SelfAttention(self.heads, self.dropout, dtype=self.dtype, name="attention")(
            y, mask, deterministic=deterministic
        )
        x = x + Dropout(self.dropout)(y, deterministic=deterministic)
        return x + FeedForward(self.hidden, self.dropout, self.dtype, name="feed_forward")(
            x, deterministic=deterministic
        )


class TextEncoder(nn.Module):
    """Embedding, convolutions, positions, Transformer.

    Attributes:
        vocab_size: Number of tokens, padding (0) included.
        features: Size of the embeddings.
        conv_layers: Number of convolutional layers.
        conv_kernel: Their width, in tokens.
        layers: Number of Transformer layers.
        heads: Attention heads.
        hidden: Size of the feed-forward layers.
        languages: Number of source languages with an embedding; 0 for none, as in the paper.
        dropout: Rate of every branch.
        scan: Compile one Transformer layer and loop over it; parameters get a leading `layers`
            axis.
        remat: Which of a Transformer layer's activations are kept for the backward pass; see
            `rematerialisation`.
        dtype: Computation dtype.
    """

    vocab_size: int
    features: int = 512
    conv_layers: int = 3
    conv_kernel: int = 5
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    languages: int = 0
    dropout: float = 0.0
    scan: bool = False
    remat: Policy = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses an unknown policy before anything is built."""
        check_policy(self.remat, "TextEncoder.remat")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Embeds a text.

        Args:
            tokens: `[batch, tokens]` int32.
            mask: `[batch, tokens]` bool, True = valid.
            language: `[batch]` language ids, used if the module has languages; nothing is added
                where they are negative.
            deterministic: No dropout.

        Returns:
            `[batch, tokens, features]`: the paper's e_t.
        """
        x = embedding(self.vocab_size, self.features, dtype=self.dtype, name="tokens")(tokens)
        # From variance 1 / features to 1, beside which the positions do not drown them.
        x = x * self.features**0.5
        if self.languages and language is not None:
            table = embedding(
                self.languages, self.features, rows=None, dtype=self.dtype, name="languages"
            )
            # A negative id, an unknown language, would count from the end of the table: it looks up
            # 0, and its vector is dropped.
            added = table(jnp.maximum(language, 0))
            added = jnp.where((language >= 0)[:, None], added, jnp.zeros((), added.dtype))
            x = x + added[:, None, :]
        drop = Dropout(self.dropout, deterministic=deterministic)
        for index in range(self.conv_layers):
            # Before each layer, whose window reaches into the padding, where biases make nonzero
            # numbers.
            x = zero_padding(x, mask)
            # A convolution over a short sequence as one matrix product of the unfolded window.
            half = self.conv_kernel // 2
            padded = jnp.pad(x, ((0, 0), (half, half), (0, 0)))
            window = jnp.concatenate(
                [padded[:, i : i + x.shape[1]] for i in range(self.conv_kernel)], axis=-1
            )
            y = Dense(self.features, ("embed", "mlp"), dtype=self.dtype, name=f"conv_{index}")(
                window
            )
            x = drop(nn.relu(layer_norm(dtype=self.dtype, name=f"conv_norm_{index}")(y)))
        # Behind the convolutions, which see positions by themselves, and before attention, which
        # does not.
        x = x + sinusoids(jnp.arange(x.shape[1]), self.features).astype(self.dtype)
        x = constrain(x, "batch", "frames", "act_embed")

        def run(module: TransformerBlock, x: jax.Array) -> jax.Array:
            return module(x, mask, deterministic=deterministic)

        scanned = self.scan and self.layers > 1
        run = rematerialised(run, self.remat, scanned=scanned)
        settings = (self.heads, self.hidden, self.dropout, self.dtype)
        if scanned:
            x = scan_layers(run, TransformerBlock(*settings, name="layers"), x, self.layers)
        else:
            for index in range(self.layers):
                x = run(TransformerBlock(*settings, name=f"layer_{index}"), x)
        return zero_padding(layer_norm(dtype=self.dtype, name="output_norm")(x), mask)
