"""Quantizers that turn speech into codes, the targets of the self-supervised losses.

`GumbelQuantizer`: wav2vec 2.0, equation 1; one codebook of 1024 entries in w2v-BERT, table 1. It
sees the *unmasked* convolutional features.

`RandomProjectionQuantizer`: BEST-RQ (arXiv 2202.01855, section 3.1), several codebooks as in USM
(arXiv 2303.01037, section 2.2); nothing in it is ever trained. For a frame x and codebook k, with a
random matrix A_k and random unit vectors c_k,i,

    id_k = argmin over i of || c_k,i - A_k x / |A_k x| ||  =  argmax over i of cos(c_k,i, A_k x)
"""

from __future__ import annotations

import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.dropout import sample
from maestro_jax.layers.partitioned import Dense, constrain, parameter
from maestro_jax.losses.similarity import l2_normalize
from maestro_jax.precision import EXACT


@flax.struct.dataclass
class Quantized:
    """What the quantizer says of a batch of frames.

    Attributes:
        vectors: `[batch, frames, code_features]`, the chosen codes; straight-through gradient.
        sampled_ids: `[batch, frames]` int32, which codes these are; noisy unless deterministic.
        ids: `[batch, frames]` int32, the most likely code, the target of masked prediction.
        probabilities: `[batch, frames, codes]`, softmax without noise, for the diversity loss.
        temperature: Scalar, the Gumbel temperature of the step.
    """

    vectors: jax.Array
    sampled_ids: jax.Array
    ids: jax.Array
    probabilities: jax.Array
    temperature: jax.Array


class GumbelQuantizer(nn.Module):
    """One codebook; computed in float32.

    Attributes:
        codes: Entries of the codebook.
        code_features: Size of a code.
        temperature_start: Gumbel temperature at step 0.
        temperature_end: The lowest temperature.
        temperature_decay: Factor per step.
    """

    codes: int = 1024
    code_features: int = 1024
    temperature_start: float = 2.0
    temperature_end: float = 0.1
    temperature_decay: float = 0.999995

    def temperature(self, step: jax.Array | int) -> jax.Array:
        """Returns the annealed temperature at a training step, a scalar."""
        # Not a power of a float32: 0.999995 rounded to one is off by 2% after 600k steps.
        rate = math.log(self.temperature_decay)
        decayed = self.temperature_start * jnp.exp(rate * jnp.asarray(step, jnp.float32))
        return jnp.maximum(decayed, self.temperature_end)

    def __post_init__(self) -> None:
        """Refuses an annealing that does not fall."""
        super().__post_init__()
        if not 0.0 < self.temperature_end <= self.temperature_start:
            raise ValueError(
                f"temperature_start {self.temperature_start} and temperature_end "
                f"{self.temperature_end} must be positive, the first not below the second."
            )
        if not 0.0 < self.temperature_decay <= 1.0:
            raise ValueError(
                f"temperature_decay is {self.temperature_decay}; give a factor per step in (0, 1]."
            )

    @nn.compact
    def __call__(
        self, features: jax.Array, step: jax.Array | int = 0, *, deterministic: bool = True
    ) -> Quantized:
        """Quantizes frames.

        Args:
            features: `[batch, frames, features]`, unmasked.
            step: Training step, for the temperature.
            deterministic: Take the most likely code instead of a sample; otherwise the random
                stream `gumbel` is needed.

        Returns:
            The codes of every frame.
        """
        logits = Dense(
            self.codes,
            ("embed", "codes"),
            name="logits",
            precision=EXACT,
            # As in the authors' code: the softmax of a frame is peaked from the first step. With
            # the usual small weights the noise picks the code, and codes cannot be predicted.
            kernel_init=nn.initializers.normal(1.0),
        )(features.astype(jnp.float32))
        shape = (self.codes, self.code_features)
        codebook = parameter(self, "codebook", _centred, ("codes", "embed"), shape)
        probabilities = jax.nn.softmax(logits, axis=-1)
        temperature = self.temperature(step)
        if deterministic:
            soft = probabilities
        else:
            noise = sample(jax.random.gumbel, self.make_rng("gumbel"), logits.shape)
            # wav2vec 2.0, equation 1. The Gumbel noise makes the argmax a sample of the softmax;
            # the temperature changes how sharp `soft`, and so the gradient, is, and not which code
            # is chosen.
            soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
        sampled = jnp.argmax(soft, axis=-1).astype(jnp.int32)  # [batch, frames]
        hard = jax.nn.one_hot(sampled, self.codes)  # [batch, frames, codes]
        # Straight-through: the value is `hard`, the gradient that of `soft`.
        one_hot = hard + soft - jax.lax.stop_gradient(soft)
        return Quantized(
            # Exact, or all but the first 8 bits of a code would be lost on the way.
            vectors=jnp.matmul(one_hot, codebook, precision=EXACT),
            sampled_ids=sampled,
            ids=jnp.argmax(logits, axis=-1).astype(jnp.int32),
            probabilities=probabilities,
            temperature=temperature,
        )


def _centred(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draws codes in all directions.

    wav2vec 2.0 draws from 0 ... 1, where any two codes have a cosine of 3/4, and has a projection
    behind the codebook that can mend it; here codes are compared as they are.
    """
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


class RandomProjectionQuantizer(nn.Module):
    """Codebooks that stay as they were initialised; computed in float32.

    The matrices and codebooks are parameters, so that a checkpoint holds them, with names that
    begin with ``frozen_``: optimizers leave such parameters alone. No gradient reaches them, and
    what they compute does not depend on their scale.

    Attributes:
        codebooks: Number of codebooks, each with a projection of its own.
        codes: Entries of a codebook.
        code_features: Size of a code.
    """

    codebooks: int = 16
    codes: int = 8192
    code_features: int = 16

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Finds the nearest code of each frame in each codebook.

        Args:
            features: `[batch, frames, features]`, log-mel frames stacked to the encoder's rate.
                Each is normalised to mean 0 and variance 1 over its features first: else what all
                frames share decides, and few codes are used.

        Returns:
            `[batch, frames, codebooks]` int32.
        """
        inputs = features.shape[-1]
        projections = self.param(
            "frozen_projections",
            nn.with_logical_partitioning(
                nn.initializers.xavier_uniform(batch_axis=(0,)), (None, None, None)
            ),
            (self.codebooks, inputs, self.code_features),
            jnp.float32,
        )
        codebooks = self.param(
            "frozen_codebooks",
            nn.with_logical_partitioning(_unit_normal, (None, "codes", None)),
            (self.codebooks, self.codes, self.code_features),
            jnp.float32,
        )
        x = jax.lax.stop_gradient(features.astype(jnp.float32))
        # Frames of the padding are zero and stay so; their codes mean nothing, and the loss masks
        # them.
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)

        def nearest(codebook: tuple[jax.Array, jax.Array]) -> jax.Array:
            projection, codes = codebook
            # The length of what is projected does not change which code is the nearest.
            projected = jnp.einsum("bti,if->btf", x, projection, precision=EXACT)
            similarity = jnp.einsum(
                "btf,cf->btc", projected, l2_normalize(codes, epsilon=0.0), precision=EXACT
            )
            similarity = constrain(similarity, "batch", "frames", None)
            return jnp.argmax(similarity, axis=-1).astype(jnp.int32)

        # One codebook at a time: all similarities at once would be codebooks x codes per frame.
        frozen = jax.lax.stop_gradient((projections, codebooks))
        return jnp.moveaxis(jax.lax.map(nearest, frozen), 0, -1)


def _unit_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draws vectors of length one, uniformly over all directions: normal ones, scaled."""
    return l2_normalize(jax.random.normal(key, shape, dtype), epsilon=0.0)
