"""The RNN-T decoder: prediction network and joint network.

Source: a 2-layer LSTM of 1280 units and a joint layer of 640 units (MAESTRO, section 3); Graves
2012 (arXiv 1211.3711).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.dropout import Dropout
from maestro_jax.layers.lstm import LstmLayer, LstmState
from maestro_jax.layers.partitioned import (
    DEFAULT_KERNEL_INIT,
    ZERO_INIT,
    Dense,
    constrain,
    embedding,
    shards,
)
from maestro_jax.losses.transducer_joint import chunk_rule, joint_lattices


class JointOutput(nn.Module):
    """The joint network's last layer: whole logits for decoding, arcs for training.

    Attributes:
        vocab_size: Number of outputs, blank (0) included.
        features: Size of the joint layer.
        hat: Blank and labels factorised; see `maestro_jax.losses.transducer_arcs`.
        chunk_frames: Frames whose logits training holds at once; None picks by `chunk_rule`.
        dtype: Computation dtype; logits are float32.
    """

    vocab_size: int
    features: int
    hat: bool = False
    chunk_frames: int | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the parameters."""
        # Linen hands the arrays themselves to the methods, without their boxes.
        self.kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(DEFAULT_KERNEL_INIT, ("joint", "vocab")),
            (self.features, self.vocab_size),
            jnp.float32,
        )
        self.bias: Any = self.param(
            "bias", nn.with_logical_partitioning(ZERO_INIT, ("vocab",)), (self.vocab_size,)
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Maps `[..., joint_features]` to logits `[..., vocab]` float32."""
        # One product of two matrices, added up in float32, as in `transducer_joint`: decoding and
        # training must agree on the logits.
        rows = hidden.reshape(-1, hidden.shape[-1])
        kernel = self.kernel.astype(self.dtype)
        logits = jnp.matmul(rows, kernel, preferred_element_type=jnp.float32) + self.bias
        return logits.reshape(*hidden.shape[:-1], -1)

    def lattices(
        self, frames: jax.Array, predictions: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Computes arcs of every node, a chunk of frames at a time; see `joint_lattices`."""
        chunk = self.chunk_frames or chunk_rule(
            -(-frames.shape[0] // shards("batch")),
            frames.shape[1],
            predictions.shape[1],
            -(-self.vocab_size // shards("act_vocab")),
        )
        # Split over data, a kernel would be gathered again for each chunk. It stays float32, and so
        # does its gradient, a sum over all chunks.
        kernel = constrain(self.kernel, None, "act_vocab")
        return joint_lattices(
            frames,
            predictions,
            kernel,
            self.bias,
            labels,
            hat=self.hat,
            chunk_frames=chunk,
            constrain=constrain,
        )


class TransducerDecoder(nn.Module):
    """Prediction network over labels, joint network over frames and labels.

    Attributes:
        vocab_size: Number of outputs, blank (0) included.
        embedding_features: Size of the label embedding.
        units: Units of each LSTM layer.
        layers: Number of LSTM layers.
        joint_features: Size of the joint layer.
        hat: Blank and labels factorised (hybrid autoregressive transducer).
        one_label_per_frame: A label consumes its frame, in training, alignment and decoding.
        chunk_frames: Frames whose logits training holds at once; None picks by `chunk_rule`.
        dropout: Rate on label embeddings and on the prediction network's output.
        dtype: Computation dtype; logits are float32.
    """

    vocab_size: int
    embedding_features: int = 640
    units: int = 1280
    layers: int = 2
    joint_features: int = 640
    hat: bool = False
    one_label_per_frame: bool = False
    chunk_frames: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Creates the layers."""
        self.embed = embedding(self.vocab_size, self.embedding_features, dtype=self.dtype)
        self.lstm = [LstmLayer(self.units, self.dtype) for _ in range(self.layers)]
        self.frame_projection = Dense(self.joint_features, ("embed", "joint"), dtype=self.dtype)
        # Without a bias: the sum of both projections has the one of the frames.
        self.label_projection = Dense(
            self.joint_features, ("embed", "joint"), use_bias=False, dtype=self.dtype
        )
        self.output = JointOutput(
            self.vocab_size, self.joint_features, self.hat, self.chunk_frames, self.dtype
        )
        self.drop = Dropout(self.dropout)

    def initial_state(self, batch: int) -> tuple[LstmState, ...]:
        """Returns zero states of all layers, each a pair of `[batch, units]`."""
        # Float32 whatever the dtype: a loop carries the state, and its types must not change.
        zeros = jnp.zeros((batch, self.units), jnp.float32)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def predict(
        self, labels: jax.Array, state: tuple[LstmState, ...], *, deterministic: bool = True
    ) -> tuple[jax.Array, tuple[LstmState, ...]]:
        """Runs the prediction network over labels.

        Args:
            labels: `[batch, steps]` int32; the first of a text is blank.
            state: From `initial_state` or an earlier call.
            deterministic: No dropout.

        Returns:
            `[batch, steps, joint_features]`, projected for the joint, and the new state.
        """
        x = self.drop(self.embed(labels), deterministic=deterministic)
        states = []
        for layer, layer_state in zip(self.lstm, state, strict=True):
            x, layer_state = layer(x, layer_state)
            states.append(layer_state)
        x = self.drop(x, deterministic=deterministic)
        return self.label_projection(x), tuple(states)

    def project_frames(self, encoded: jax.Array) -> jax.Array:
        """Projects `[..., features]` of the encoder to `[..., joint_features]`."""
        return self.frame_projection(encoded.astype(self.dtype))

    def joint(self, frames: jax.Array, labels: jax.Array) -> jax.Array:
        """Computes logits `[..., vocab]` float32 of projected frames and labels that broadcast."""
        return self.output(jnp.tanh(frames + labels))

    def prediction_network(self, labels: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Maps texts `[batch, labels]` to `[batch, labels + 1, joint_features]`, from blank on."""
        # The blank begins every text: row u of the output has read u labels. Labels of the padding
        # come after all valid ones, and an LSTM does not look ahead.
        shifted = jnp.pad(labels, ((0, 0), (1, 0)))
        state = self.initial_state(labels.shape[0])
        return self.predict(shifted, state, deterministic=deterministic)[0]

    def __call__(
        self,
        encoded: jax.Array,
        labels: jax.Array,
        predicted: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes both arcs of every node, without the logits of the whole lattice.

        Args:
            encoded: `[batch, frames, features]`.
            labels: `[batch, labels]` int32.
            predicted: The output of `prediction_network` for the labels, if it is known already.
            deterministic: No dropout.

        Returns:
            Log-probabilities of the blank, `[batch, frames, labels + 1]`, and of the next label,
            `[batch, frames, labels]`, float32.
        """
        if predicted is None:
            predicted = self.prediction_network(labels, deterministic=deterministic)
        return self.output.lattices(self.project_frames(encoded), predicted, labels)
