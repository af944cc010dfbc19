"""Whether samples can be speech: their level, and what is left when channels are averaged."""

from __future__ import annotations

import numpy as np

from maestro_jax.audio.containers.layout import Finding

FULL_SCALE_16 = 32_768
# Integers of so many bits that were written as floats without being divided.
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
_SURELY_INTEGERS = 256.0
"""No float is so loud by chance; integers of speech are louder."""
_FLOATS = ("FLOAT", "DOUBLE")
# Integers of fewer bits that were written without being shifted: up to which peak, and by how much
# they are multiplied.
_SHIFTS = {
    "PCM_24": ((2.0**-8, 2.0**8),),
    "PCM_32": ((2.0**-16, 2.0**16), (2.0**-8, 2.0**8)),
}
_STEPS = {"PCM_24": 2.0**-23, "PCM_32": 2.0**-31}
_LEAST_STEPS = 100
"""Of the file's own; what is below it is the noise of a converter."""
_TWICE_DIVIDED = 1e-7
"""Two steps of 16 bits, divided by 32768 twice; below it there is nothing."""
_QUIET = 2.0**-9
"""Of so loud a recording, 16 bits keep the upper 6: no speech is recorded as quietly."""
_FEW = 1e-3
"""A share of samples beyond full scale that decoding and mixing leave."""
_LOUD = 2.0
_AT_THE_LIMITS = 0.1
_CANCELLED = 0.5
"""Of the energy that uncorrelated channels keep when they are averaged; of two, those whose
correlation is below -0.5 keep less."""
_CANCELLED_SHARE = 0.1
_ABOUT_AS_LOUD = 0.7
_OFFSET = 0.005
_EDGE = 1600
_FAR = 1e-3
_BLOCKS = 64
_LEAST_BLOCK = 1600


def is_of_whole_file(subtype: str) -> bool:
    """Whether a part of a file of this subtype cannot be scaled without knowing the rest."""
    return subtype in _FLOATS


def may_be_shifted(samples: np.ndarray, subtype: str) -> bool:
    """Whether samples are multiplied if the rest of their file is as quiet as they are.

    Args:
        samples: float32 `[samples, channels]`, of any part of a file.
        subtype: As of `fit_level`.
    """
    if subtype not in _SHIFTS:
        return False
    return _peak(samples) <= _SHIFTS[subtype][-1][0]


def fit_level(samples: np.ndarray, subtype: str) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Brings samples that are far beyond full scale, or far below it, back to it.

    Up to twice full scale is what decoders and mixers leave: scaled down without a finding, or left
    as it is where so few samples are beyond that clipping them is not heard.

    Args:
        samples: float32 `[samples, channels]`.
        subtype: Of the file, as libsndfile calls it: only `FLOAT` and `DOUBLE` can hold samples
            that were divided twice, only `PCM_24` and `PCM_32` integers of fewer bits.

    Returns:
        The samples, scaled where their level is absurd, and what was found.
    """
    peak = _peak(samples)
    if not np.isfinite(peak):
        return samples, ()
    if subtype in _FLOATS and _TWICE_DIVIDED < peak <= _QUIET:
        if peak > 1.01 / FULL_SCALE_16:
            said = f"no sample is louder than {peak:.2g} of full scale"
            return samples, (Finding("absurd level", said),)
        said = f"no sample is louder than {peak:.2g} of full scale: multiplied by {FULL_SCALE_16}"
        return samples * np.float32(FULL_SCALE_16), (Finding("absurd level", said),)
    if factor := _shift(samples, subtype, peak):
        said = f"no sample is louder than {peak:.2g} of full scale: multiplied by {factor:.0f}"
        return samples * np.float32(factor), (Finding("absurd level", said),)
    if peak <= 1.0:
        return samples, _at_the_limits(samples, peak)
    beyond = int(np.count_nonzero(np.abs(samples) > 1.0))
    if beyond <= _FEW * samples.size:
        if peak <= _LOUD:
            return samples, ()
        said = f"{beyond} samples reach {peak:.4g} times full scale: clipped"
        return np.clip(samples, -1.0, 1.0), (Finding("absurd level", said),)
    scale = peak
    if peak >= _SURELY_INTEGERS:
        # Filters overshoot, integers of speech by less than twice.
        scale = max(next((one for one in _INTEGER_SCALES if peak <= _LOUD * one), peak), peak)
    scaled = samples / np.float32(scale)
    if peak <= _LOUD and beyond <= _AT_THE_LIMITS * samples.size:
        return scaled, ()
    said = f"samples reach {peak:.4g} times full scale: divided by {scale:.10g}"
    return scaled, (Finding("absurd level", said),)


def _peak(samples: np.ndarray) -> float:
    return max(float(samples.max()), -float(samples.min())) if samples.size else 0.0


def _shift(samples: np.ndarray, subtype: str, peak: float) -> float:
    """What integers of fewer bits than the file has are multiplied by; 0 if they are none."""
    for limit, factor in _SHIFTS.get(subtype, ()):
        if _LEAST_STEPS * _STEPS[subtype] < peak <= limit:
            # Steps of 16 bits are those of a recording that was quiet before it got more bits.
            steps = samples * np.float32(FULL_SCALE_16)
            return 0.0 if np.array_equal(steps, np.rint(steps)) else factor
    return 0.0


def _at_the_limits(samples: np.ndarray, peak: float) -> tuple[Finding, ...]:
    """Whether the samples were clipped before they were written."""
    limit = 1.0 - 1.5 / FULL_SCALE_16
    if peak < limit:
        return ()
    share = float(np.mean(np.abs(samples) >= limit))
    if share < _AT_THE_LIMITS:
        return ()
    return (Finding("absurd level", f"{share:.0%} of the samples are at full scale: clipped"),)


def mix(samples: np.ndarray) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Averages channels, or takes the loudest where they cancel each other out.

    Args:
        samples: float32 `[samples, channels]`.

    Returns:
        `[samples]`, and what was found.
    """
    channels = samples.shape[1]
    # A mean over one channel would take a third of the time.
    if channels == 1:
        return samples[:, 0], ()
    # numpy's mean over so short an axis takes ten times as long.
    mixed = samples @ np.full(channels, 1 / channels, samples.dtype)
    energy, left = _energies(samples), _energies(mixed[:, None])[:, 0]
    parts = energy.mean(axis=1)
    cancelled = parts[left < _CANCELLED / channels * parts].sum()
    if not cancelled > _CANCELLED_SHARE * parts.sum():
        return mixed, ()
    # The first of those that are about as loud: the same one in every part of a file.
    loud = energy.sum(axis=0)
    channel = int(np.argmax(loud > _ABOUT_AS_LOUD * loud.max()))
    said = f"its {channels} channels cancel each other out: channel {channel + 1} is read"
    return np.ascontiguousarray(samples[:, channel]), (Finding("cancelled channels", said),)


def _energies(samples: np.ndarray) -> np.ndarray:
    """Sums of squares around the mean, `[blocks, channels]`: an offset is no sound."""
    length, channels = samples.shape
    blocks = max(min(length // _LEAST_BLOCK, _BLOCKS), 1)
    inside = samples[: length // blocks * blocks].reshape(blocks, -1, channels)
    squares = np.einsum("bsc,bsc->bc", inside, inside)
    sums = np.einsum("bsc->bc", inside)
    return np.maximum(squares - sums**2 / inside.shape[1], 0.0)


def silence(samples: np.ndarray) -> tuple[Finding, ...]:
    """Whether samples are one value from beginning to end: digital silence, or an offset.

    Args:
        samples: `[samples]`, at least one.

    Returns:
        A finding if they never vary by more than two steps of 16 bits; or, as a lossy coding leaves
        an offset, hardly from one to the next but at the ends.
    """
    step = 1.0 / FULL_SCALE_16
    # Nearly every recording is told by a few of its samples.
    few = samples[:: max(len(samples) // 1000, 1)]
    if few.max() - few.min() > _FAR and abs(few.mean()) < _OFFSET / 2:
        return ()
    low, high, mean = float(samples.min()), float(samples.max()), float(samples.mean())
    if not high - low <= 2.01 * step:
        inside = samples[_EDGE:-_EDGE]
        if abs(mean) < _OFFSET or not len(inside):
            return ()
        changes = np.abs(np.diff(inside))
        if changes.max(initial=0) > 10 * step or np.quantile(changes, 0.99) > 3 * step:
            return ()
    is_zero = abs(mean) <= 2 * step
    said = "digital silence" if is_zero else f"an offset of {mean:.3f}"
    return (Finding("silent audio", f"nothing but {said} from beginning to end"),)
