"""From 16 kHz samples to log-mel features, on the device.

The chain for one batch:

    audio                 [batch, samples]      int16 or float, 16 kHz
    framed, windowed      [batch, frames, 400]  25 ms every 10 ms, no frame beyond the last sample
    power spectrum        [batch, frames, 257]
    log-mel               [batch, frames, 80]   natural logarithm, normalised over the utterance

Source: 80 log-mel bins at 16 kHz, 25 ms windows, 10 ms hop (w2v-BERT, section 4; SLAM, section
4.1).
"""

from __future__ import annotations

from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from maestro_jax.layers.fourier import even_before_odd, power_spectrum
from maestro_jax.layers.masking import block_mask, length_mask, zero_padding
from maestro_jax.layers.normalization import MaskedGroupNorm
from maestro_jax.layers.partitioned import constrain
from maestro_jax.precision import EXACT

INT16_SCALE = 32768.0
WINDOW_SHAPES = ("hann", "hanning", "povey")


def window_samples(shape: str, size: int) -> np.ndarray:
    """Returns the weights `[size]` float32 of one of `WINDOW_SHAPES`."""
    if shape == "hann":
        # Periodic: one period of the cosine in `size` samples; NumPy makes symmetric windows.
        window = np.hanning(size + 1)[:-1]
    else:
        window = np.hanning(size) ** (0.85 if shape == "povey" else 1.0)
    return window.astype(np.float32)


def mel_filterbank(
    bins: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float
) -> np.ndarray:
    """Makes triangular filters, evenly spaced on the mel scale 1127 ln(1 + f / 700).

    Args:
        bins: Number of filters.
        fft_size: Points of the transform.
        sample_rate: In Hz.
        low_hz: Lower edge of the first filter.
        high_hz: Upper edge of the last filter.

    Returns:
        `[fft_size // 2 + 1, bins]` float32 weights; each triangle is linear in mel and peaks at 1.
    """

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    frequencies = mel(np.arange(fft_size // 2 + 1) * sample_rate / fft_size)[:, None]
    edges = np.linspace(mel(low_hz), mel(high_hz), bins + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


class LogMelFrontend(nn.Module):
    """Log-mel features with per-utterance normalisation, and SpecAugment in training.

    Attributes:
        sample_rate: Hz.
        window: Samples per frame.
        hop: Samples between frames.
        bins: Mel bins.
        low_hz: Lower edge of the filterbank.
        high_hz: Upper edge of the filterbank.
        preemphasis: Coefficient of the first-order high-pass filter within a frame; 0 for none.
        remove_offset: Subtract the mean of each frame first.
        window_shape: `hann` (periodic), `hanning` (symmetric) or `povey` (its power 0.85), the
            last two as in Kaldi.
        floor: Smallest mel energy before the logarithm, on the int16 scale (Kaldi: 1.19e-7).
        normalize: Zero mean and unit variance of each bin over the valid frames of an utterance.
        frequency_masks: SpecAugment: number of frequency masks.
        frequency_mask_bins: SpecAugment: largest width of a frequency mask, in bins.
        time_masks: SpecAugment: number of time masks.
        time_mask_ratio: SpecAugment: largest width of a time mask, as a share of the utterance.
    """

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    bins: int = 80
    low_hz: float = 20.0
    high_hz: float = 8000.0
    preemphasis: float = 0.97
    remove_offset: bool = True
    window_shape: str = "hann"
    floor: float = 1.0
    normalize: bool = True
    frequency_masks: int = 2
    frequency_mask_bins: int = 27
    time_masks: int = 10
    time_mask_ratio: float = 0.05

    def __post_init__(self) -> None:
        """Refuses unknown windows."""
        super().__post_init__()
        if self.window_shape not in WINDOW_SHAPES:
            raise ValueError(
                f"window_shape is {self.window_shape!r}; choose one of {WINDOW_SHAPES}."
            )

    @overload
    def frame_count(self, samples: int) -> int: ...

    @overload
    def frame_count(self, samples: jax.Array) -> jax.Array: ...

    def frame_count(self, samples: jax.Array | int) -> jax.Array | int:
        """Returns the number of frames that fit into a number of samples (0 below one window)."""
        if isinstance(samples, int):
            return max(0, 1 + (samples - self.window) // self.hop)
        return jnp.maximum(0, 1 + (samples - self.window) // self.hop)

    @nn.compact
    def __call__(
        self, audio: jax.Array, audio_length: jax.Array, *, augment: jax.Array | bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Computes features and their lengths.

        Args:
            audio: `[batch, samples]`, int16, or float in [-1, 1).
            audio_length: `[batch]`, valid samples.
            augment: Apply SpecAugment, to all rows or, `[batch]` bool, to some; needs the random
                stream `specaugment`.

        Returns:
            Features `[batch, frames, bins]` float32, zero on padding, and lengths `[batch]` in
            frames.
        """
        if audio.dtype == jnp.int16:
            signal = audio.astype(jnp.float32)
        else:
            signal = audio.astype(jnp.float32) * INT16_SCALE
        frames = self.frame_count(audio.shape[1])
        lengths = self.frame_count(audio_length)
        mask = length_mask(lengths, frames)

        # Frames as slices of the hop-sized blocks they overlap: no gather, no strided convolution.
        blocks = -(-self.window // self.hop)
        needed = (frames - 1 + blocks) * self.hop
        signal = jnp.pad(signal, ((0, 0), (0, max(0, needed - signal.shape[1]))))[:, :needed]
        signal = signal.reshape(signal.shape[0], -1, self.hop)
        framed = jnp.concatenate([signal[:, i : i + frames] for i in range(blocks)], axis=-1)
        framed = framed[:, :, : self.window]

        if self.remove_offset:
            framed = framed - jnp.mean(framed, axis=-1, keepdims=True)
        # Within the frame, as Kaldi does: its first sample has itself as predecessor.
        previous = jnp.concatenate([framed[:, :, :1], framed[:, :, :-1]], axis=-1)
        window = window_samples(self.window_shape, self.window)
        framed = (framed - self.preemphasis * previous) * window
        # The next power of two: 512 points for 400 samples.
        fft_size = 1 << (self.window - 1).bit_length()
        power = power_spectrum(framed, fft_size)
        filters = mel_filterbank(self.bins, fft_size, self.sample_rate, self.low_hz, self.high_hz)
        # The powers of a frame span ten orders of magnitude: rounded operands would drown quiet
        # bins.
        energies = jnp.matmul(power, even_before_odd(filters), precision=EXACT)
        features = jnp.log(jnp.maximum(energies, self.floor))
        features = zero_padding(features, mask)
        if self.normalize:
            # Padding is zero in both sums and not in the count. In two passes: E[x^2] - E[x]^2 of
            # log-mels near 15 would lose its digits.
            count = jnp.maximum(lengths, 1).astype(jnp.float32)[:, None, None]
            mean = jnp.sum(features, axis=1, keepdims=True) / count
            centred = zero_padding(features - mean, mask)
            variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / count
            features = centred * jax.lax.rsqrt(variance + 1e-2)
        # Nothing here is trained; the spectrum need not be kept for a backward pass.
        features = jax.lax.stop_gradient(features)
        if augment is not False:
            features = self.spec_augment(features, lengths, augment)
        return features, lengths

    def spec_augment(
        self, features: jax.Array, lengths: jax.Array, augment: jax.Array | bool = True
    ) -> jax.Array:
        """Sets random bands and stretches to zero, the mean of normalised features.

        Source: SpecAugment (Park et al. 2019, arXiv 1904.08779), without time warping.

        Args:
            features: `[batch, frames, bins]`.
            lengths: `[batch]`, valid frames.
            augment: To all rows or, `[batch]` bool, to some; needs the random stream `specaugment`.
        """
        augmented = self._masked(features, lengths)
        if augment is True:
            return augmented
        rows = jnp.broadcast_to(jnp.asarray(augment), (features.shape[0],))
        return jnp.where(rows[:, None, None], augmented, features)

    def _masked(self, features: jax.Array, lengths: jax.Array) -> jax.Array:
        frequency_rng, time_rng = jax.random.split(self.make_rng("specaugment"))
        batch, frames, bins = features.shape
        if self.frequency_masks:
            band = block_mask(
                frequency_rng,
                jnp.full((batch,), bins),
                bins,
                blocks=self.frequency_masks,
                max_width=self.frequency_mask_bins,
            )
            features = jnp.where(band[:, None, :], 0.0, features)
        if self.time_masks:
            # As a share of the utterance (Park et al. 2020, arXiv 1912.05533), so that short ones
            # are not masked whole.
            widest = jnp.floor(lengths * self.time_mask_ratio).astype(jnp.int32)
            stretch = block_mask(
                time_rng, lengths, frames, blocks=self.time_masks, max_width=widest
            )
            features = jnp.where(stretch[:, :, None], 0.0, features)
        return features


def stack_frames(x: jax.Array, factor: int) -> jax.Array:
    """Stacks frames side by side, to the rate of an encoder that sees every `factor`-th.

    Args:
        x: `[batch, frames, features]`.
        factor: Frames that become one.

    Returns:
        `[batch, ceil(frames / factor), factor * features]`; zeros fill up the last one.
    """
    batch, frames, features = x.shape
    count = -(-frames // factor)
    x = jnp.pad(x, ((0, 0), (0, count * factor - frames), (0, 0)))
    return x.reshape(batch, count, factor * features)


class ConvSubsampling(nn.Module):
    """Two strided 2-D convolutions: a quarter of the frames, 40 ms each (w2v-BERT, section 3).

    Attributes:
        channels: Output channels of the two convolutions.
        normalize: Give each output feature zero mean and unit variance over the valid frames of an
            utterance. What every frame shares then cannot drown what tells frames apart, which is
            how small encoders and codebooks collapse (BEST-RQ, section 3.1, normalises what it
            quantizes for this reason).
        dtype: Computation dtype.
    """

    channels: tuple[int, int] = (128, 32)
    normalize: bool = False
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """Returns the number of log-mel frames per encoder frame."""
        return 2 ** len(self.channels)

    @overload
    def frame_count(self, frames: int) -> int: ...

    @overload
    def frame_count(self, frames: jax.Array) -> jax.Array: ...

    def frame_count(self, frames: jax.Array | int) -> jax.Array | int:
        """Returns the number of encoder frames of log-mel frames; the last may be partial."""
        return -(-frames // self.factor)

    @nn.compact
    def __call__(self, features: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[batch, frames, bins]` to `[batch, frames / 4, bins / 4 * channels]`."""
        x = features.astype(self.dtype)[..., None]
        for index, channels in enumerate(self.channels):
            x = nn.Conv(
                channels,
                (3, 3),
                strides=(2, 2),
                # Not SAME: frame i must see the same inputs whatever the padded length.
                padding=((1, 1), (1, 1)),
                dtype=self.dtype,
                kernel_init=nn.with_logical_partitioning(
                    nn.initializers.he_normal(), ("kernel", None, "conv_in", "conv_out")
                ),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("conv_out",)),
                name=f"conv_{index}",
            )(x)
            x = nn.relu(x)
            # Kernel 3, stride 2, one frame of padding: ceil(n / 2) frames out of n.
            lengths = (lengths + 1) // 2
            mask = length_mask(lengths, x.shape[1])
            # A product and no choice: XLA would write the mask out for every channel.
            x = x * mask[:, :, None, None].astype(x.dtype)
        # Whole rows between here and the projection. Left to itself, XLA splits the channels as the
        # projection's inputs, and where devices outnumber channels (jax 0.10.2, seen with 4 over 8
        # on CPU) gives the kernels twice their gradient.
        x = constrain(x.reshape(x.shape[0], x.shape[1], -1), "batch", "frames", None)
        if self.normalize:
            x = MaskedGroupNorm(x.shape[-1], epsilon=1e-3, dtype=self.dtype, name="norm")(x, mask)
            x = zero_padding(x, mask)
        return x, lengths
