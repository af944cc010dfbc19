"""A Transformer decoder on the shared encoder's output, for translation.

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3; sizes of mSLAM's decoder for speech
translation (arXiv 2202.01374, section 4.2: 6 layers, 512 wide, dropout 0.3 where speech alone is
translated and 0.1 jointly with text). Layers are pre-normalised, as the other stacks here.

Training reads a whole text at once (`__call__`), decoding a token at a time (`step`) with the keys
and values of earlier tokens kept; both give the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.attention import LARGE_NEGATIVE, check_heads
from maestro_jax.layers.conformer import FeedForward
from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.normalization import layer_norm
from maestro_jax.layers.partitioned import Dense, constrain, embedding
from maestro_jax.layers.positions import sinusoids
from maestro_jax.layers.rematerialisation import Policy, check_policy, rematerialised


class KeysValues(NamedTuple):
    """What is attended to, `[..., positions, heads, size]` each."""

    keys: jax.Array
    values: jax.Array


class DecoderCache(NamedTuple):
    """What a step knows of the speech and of the tokens before.

    Attributes:
        context: A layer's keys and values of the encoder's frames, `[batch, frames, heads, size]`:
            one copy per utterance, whatever the beam.
        mask: `[batch, frames]` bool, True = valid.
        language: `[batch, features]`, added to every token's embedding.
        past: A layer's keys and values of earlier tokens, `[batch, beam, length, heads, size]`.
    """

    context: tuple[KeysValues, ...]
    mask: jax.Array
    language: jax.Array
    past: tuple[KeysValues, ...]


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be made once and kept.

    Attributes:
        features: Size of the output.
        heads: Number of heads; divides `features`.
        dropout: Rate on the attention weights.
        dtype: Computation dtype; softmax is float32.
    """

    features: int
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the parameters."""
        check_heads(self.features, self.heads, "TransformerDecoder")
        shape, axes = (self.heads, self.features // self.heads), ("embed", "heads", "kv")
        self.query = Dense(shape, axes, dtype=self.dtype)
        self.key = Dense(shape, axes, dtype=self.dtype)
        self.value = Dense(shape, axes, dtype=self.dtype)
        self.output = Dense(self.features, ("heads", "kv", "embed"), contracted=2, dtype=self.dtype)
        self.drop = Dropout(self.dropout)

    def keys_values(self, x: jax.Array) -> KeysValues:
        """Projects `[batch, positions, features]` to keys and values."""
        axes = ("batch", "frames", "act_heads", None)
        return KeysValues(constrain(self.key(x), *axes), constrain(self.value(x), *axes))

    def __call__(
        self, x: jax.Array, attended: KeysValues, mask: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Attends to given keys and values.

        Args:
            x: `[batch, queries, features]`.
            attended: `[batch, positions, heads, size]`; or, where every query has its own,
                `[batch, queries, positions, heads, size]`.
            mask: Which positions a query sees, bool, broadcasts to
                `[batch, heads, queries, positions]`.
            deterministic: No dropout.

        Returns:
            `[batch, queries, features]`.
        """
        # [batch, queries, heads, size]
        query = constrain(self.query(x), "batch", "frames", "act_heads", None)
        query = query * (self.features // self.heads) ** -0.5
        # Keys per query while decoding a beam, [b, q, k, h, d], else shared, [b, k, h, d].
        axes = "bqkhd" if attended.keys.ndim == 5 else "bkhd"
        # [batch, heads, queries, positions] float32
        logits = jnp.einsum(
            f"bqhd,{axes}->bhqk", query, attended.keys, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(jnp.where(mask, logits, LARGE_NEGATIVE), axis=-1)
        weights = self.drop(weights.astype(self.dtype), deterministic=deterministic)
        return self.output(jnp.einsum(f"bhqk,{axes}->bqhd", weights, attended.values))


class DecoderLayer(nn.Module):
    """Self-attention over the text so far, attention to the encoder, a feed-forward network.

    Attributes:
        features: Size of the residual stream.
        heads: Heads of both attentions.
        hidden: Size of the feed-forward layer.
        dropout: Rate of each residual branch and on attention weights.
        dtype: Computation dtype.
    """

    features: int
    heads: int
    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the layers."""
        attention = (self.features, self.heads, self.dropout, self.dtype)
        self.self_norm = layer_norm(dtype=self.dtype)
        self.self_attention = Attention(*attention)
        self.cross_norm = layer_norm(dtype=self.dtype)
        self.cross_attention = Attention(*attention)
        self.feed_forward = FeedForward(self.hidden, self.dropout, self.dtype)
        self.drop = Dropout(self.dropout)

    def context(self, encoded: jax.Array) -> KeysValues:
        """Returns keys and values of the encoder's output `[batch, frames, features]`."""
        return self.cross_attention.keys_values(encoded)

    def __call__(
        self,
        x: jax.Array,
        context: KeysValues,
        context_mask: jax.Array,
        *,
        past: KeysValues | None = None,
        position: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, KeysValues]:
        """Reads a whole text, or one token of several texts with keys and values of earlier ones.

        Args:
            x: `[batch, tokens, features]`; with `past` `[batch, beam, features]`.
            context: From `context`.
            context_mask: `[batch, frames]` bool.
            past: Keys and values of earlier tokens; None: `x` is the whole text.
            position: How many tokens came before, a scalar, with `past`.
            deterministic: No dropout.

        Returns:
            The new `x`, and the keys and values of what was read, those of `past` included.
        """
        y = self.self_norm(x)
        new = self.self_attention.keys_values(y)
        if past is None or position is None:
            known, index = new, jnp.arange(x.shape[1])
            visible = index[:, None] >= index  # [queries, keys], causal
        else:
            # [batch, beam, 1, heads, size] written at `position` of [batch, beam, length, heads,
            # size].
            known = KeysValues(
                *(
                    jax.lax.dynamic_update_slice_in_dim(old, one[:, :, None], position, axis=2)
                    for old, one in zip(past, new, strict=True)
                )
            )
            # [keys]: the zeros of positions not yet written must have no weight.
            visible = jnp.arange(known.keys.shape[2]) <= position
        y = self.self_attention(y, known, visible, deterministic=deterministic)
        x = x + self.drop(y, deterministic=deterministic)
        y = self.cross_attention(
            self.cross_norm(x),
            context,
            context_mask[:, None, None, :],
            deterministic=deterministic,
        )
        x = x + self.drop(y, deterministic=deterministic)
        x = x + self.feed_forward(x, deterministic=deterministic)
        return constrain(x, "batch", "frames", "act_embed"), known


class TransformerDecoder(nn.Module):
    """Tokens so far and the encoder's output to the logits of the next token.

    A text begins after id 0 and ends with id 1 (`maestro_jax.text.vocabularies`).

    Attributes:
        vocab_size: Number of outputs, padding (0) and end of sequence (1) included.
        layers: Number of layers.
        features: Size of the residual stream.
        heads: Attention heads.
        hidden: Size of the feed-forward layers.
        languages: Number of languages to write that can be asked for, each with an embedding that
            is added to every token's; 0 for a decoder of one language.
        tied: Whether the output layer is the table of the token embeddings.
        dropout: Rate of every branch.
        remat: Which of a layer's activations are kept for the backward pass; see
            `rematerialisation`.
        dtype: Computation dtype; logits are float32.
    """

    vocab_size: int
    layers: int = 6
    features: int = 512
    heads: int = 8
    hidden: int = 2048
    languages: int = 0
    tied: bool = True
    dropout: float = 0.1
    remat: Policy = "none"
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuses heads that do not divide the features before anything is built."""
        check_policy(self.remat, "TransformerDecoder.remat")
        if self.features % self.heads:
            raise ValueError(
                f"TransformerDecoder.heads is {self.heads}, which does not divide features "
                f"{self.features}; choose a divisor."
            )
        super().__post_init__()

    def setup(self) -> None:
        """Creates the layers."""
        self.tokens = embedding(self.vocab_size, self.features, dtype=self.dtype)
        if self.languages:
            self.language_embedding = embedding(
                self.languages, self.features, rows=None, dtype=self.dtype
            )
        self.stack = [
            DecoderLayer(self.features, self.heads, self.hidden, self.dropout, self.dtype)
            for _ in range(self.layers)
        ]
        self.output_norm = layer_norm(dtype=self.dtype)
        if not self.tied:
            self.output = Dense(self.vocab_size, ("embed", "vocab"), dtype=self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        encoded: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Computes logits of the token that follows each token, given those up to it.

        Args:
            tokens: `[batch, tokens]` int32, the first of a text is id 0.
            encoded: `[batch, frames, encoder_features]`.
            mask: `[batch, frames]` bool, True = valid.
            target_language: `[batch]` ids; negative or None for none; ignored without languages.
            deterministic: No dropout.

        Returns:
            `[batch, tokens, vocab]` float32.
        """
        language = self._language(target_language, len(tokens))
        x = self._embed(tokens, jnp.arange(tokens.shape[1]), language)
        x = self.drop(x, deterministic=deterministic)

        def run(layer: DecoderLayer, x: jax.Array) -> jax.Array:
            # Keys and values of the encoder are computed inside, so that rematerialisation can drop
            # them.
            return layer(x, layer.context(encoded), mask, deterministic=deterministic)[0]

        run = rematerialised(run, self.remat)
        for layer in self.stack:
            x = run(layer, x)
        return self._logits(x)

    def start(
        self,
        encoded: jax.Array,
        mask: jax.Array,
        target_language: jax.Array | None = None,
        *,
        beam: int,
        length: int,
    ) -> DecoderCache:
        """Returns the cache before the first token.

        Args:
            encoded: `[batch, frames, encoder_features]`.
            mask: `[batch, frames]` bool.
            target_language: As for `__call__`.
            beam: Texts per utterance.
            length: Tokens that there is room for, the one that begins a text included.

        Returns:
            The cache.
        """
        # Room for all tokens from the start: a loop needs arrays of constant shapes.
        batch = len(encoded)
        shape = (batch, beam, length, self.heads, self.features // self.heads)
        empty = KeysValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return DecoderCache(
            context=tuple(layer.context(encoded) for layer in self.stack),
            mask=mask,
            language=self._language(target_language, batch),
            past=(empty,) * self.layers,
        )

    def step(
        self, tokens: jax.Array, position: jax.Array, cache: DecoderCache
    ) -> tuple[jax.Array, DecoderCache]:
        """Reads one token of each text.

        Args:
            tokens: `[batch, beam]` int32; id 0 at position 0.
            position: Scalar, the same for all.
            cache: From `start` or from an earlier step.

        Returns:
            Logits of the next token `[batch, beam, vocab]` float32, and the new cache.
        """
        x = self._embed(tokens, position, cache.language)
        past = []
        for layer, context, known in zip(self.stack, cache.context, cache.past, strict=True):
            x, known = layer(x, context, cache.mask, past=known, position=position)
            past.append(known)
        return self._logits(x), cache._replace(past=tuple(past))

    def _embed(self, tokens: jax.Array, positions: jax.Array, language: jax.Array) -> jax.Array:
        # The table has variance 1 / features, as the tied output layer wants; scaled, embeddings
        # have variance 1, beside which positions do not drown them.
        x = self.tokens(tokens) * self.features**0.5 + language[:, None, :]
        x = x + sinusoids(positions, self.features).astype(self.dtype)
        return constrain(x, "batch", "frames", "act_embed")

    def _language(self, target_language: jax.Array | None, batch: int) -> jax.Array:
        """Returns `[batch, features]`, zeros where no language is asked for."""
        if not self.languages or target_language is None:
            return jnp.zeros((batch, self.features), self.dtype)
        target = self.language_embedding(jnp.maximum(target_language, 0))
        target = target * self.features**0.5
        return jnp.where((target_language >= 0)[:, None], target, jnp.zeros((), target.dtype))

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.output_norm(x)
        if self.tied:
            table = self.tokens.embedding.astype(self.dtype)
            # Summed up in float32, for a softmax over the whole vocabulary.
            logits = jnp.matmul(x, table.T, preferred_element_type=jnp.float32)
        else:
            logits = self.output(x)
        return constrain(logits.astype(jnp.float32), "batch", "frames", "act_vocab")
