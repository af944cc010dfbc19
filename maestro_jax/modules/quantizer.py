"""The Gumbel-softmax quantizer that turns speech features into codes.

Source: wav2vec 2.0, equation 1; one codebook of 1024 entries in w2v-BERT, table 1. It sees the
*unmasked* convolutional features.
"""

from __future__ import annotations

import math

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import Dense, parameter
from maestro_jax.layers.randomness import sample
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
        temperature_decay: Factor a step.
    """

    codes: int = 1024
    code_features: int = 1024
    temperature_start: float = 2.0
    temperature_end: float = 0.1
    temperature_decay: float = 0.999995

    def temperature(self, step: jax.Array | int) -> jax.Array:
        """The annealed temperature at a training step."""
        # Not a power of a float32: 0.999995 rounded to one is off by 2% after 600k steps.
        rate = math.log(self.temperature_decay)
        decayed = self.temperature_start * jnp.exp(rate * jnp.asarray(step, jnp.float32))
        return jnp.maximum(decayed, self.temperature_end)

    def __post_init__(self) -> None:
        """Refuse an annealing that goes nowhere."""
        super().__post_init__()
        if not 0.0 < self.temperature_end <= self.temperature_start:
            raise ValueError(
                f"temperature_start {self.temperature_start} and temperature_end "
                f"{self.temperature_end} must be positive, the first not below the second."
            )
        if not 0.0 < self.temperature_decay <= 1.0:
            raise ValueError(
                f"temperature_decay is {self.temperature_decay}; give a factor a step in (0, 1]."
            )

    @nn.compact
    def __call__(
        self, features: jax.Array, step: jax.Array | int = 0, *, deterministic: bool = True
    ) -> Quantized:
        """Quantize frames.

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
            # As in the authors' code: a frame is nearly sure of its code from the first step. With
            # the usual small weights the noise chooses, and nothing in codes can be predicted.
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
            soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
        sampled = jnp.argmax(soft, axis=-1).astype(jnp.int32)
        hard = jax.nn.one_hot(sampled, self.codes)
        chosen = hard + soft - jax.lax.stop_gradient(soft)
        return Quantized(
            # Exact, or all but the first 8 bits of a code would be lost on the way.
            vectors=jnp.matmul(chosen, codebook, precision=EXACT),
            sampled_ids=sampled,
            ids=jnp.argmax(logits, axis=-1).astype(jnp.int32),
            probabilities=probabilities,
            temperature=temperature,
        )


def _centred(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Codes in all directions.

    wav2vec 2.0 draws from 0 ... 1, where any two codes have a cosine of 3/4, and has a projection
    behind the codebook that can mend it; here codes are compared as they are.
    """
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)
