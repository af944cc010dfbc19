"""Corrects implausible levels, mixes channels and detects silence."""

from __future__ import annotations

import numpy as np

from maestro_jax.audio.containers.layout import Finding

FULL_SCALE_16 = 32_768
# Scales of integers of 16, 24 and 32 bits that were written as floats without division.
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
_SURELY_INTEGERS = 256.0
"""Peak above which floats must be undivided integers."""
_FLOATS = ("FLOAT", "DOUBLE")
# Integers of fewer bits that were written without a shift: the largest peak, and the factor.
_SHIFTS = {
    "PCM_24": ((2.0**-8, 2.0**8),),
    "PCM_32": ((2.0**-16, 2.0**16), (2.0**-8, 2.0**8)),
}
_STEPS = {"PCM_24": 2.0**-23, "PCM_32": 2.0**-31}
_LEAST_STEPS = 100
"""Steps of the file's own resolution; a lower peak is the noise of a converter."""
_TWICE_DIVIDED = 1e-7
"""Two steps of 16 bits, divided by 32768 twice; a lower peak is silence."""
_QUIET = 2.0**-9
"""A peak at which 16 bits have 6 significant ones: no speech is recorded as quietly."""
_FEW = 1e-3
"""Fraction of samples beyond full scale that decoding and mixing cause."""
_LOUD = 2.0
_AT_THE_LIMITS = 0.1
_CANCELLED = 0.5
"""Fraction of the energy that the mean of uncorrelated channels has; two channels whose correlation
is below -0.5 keep less."""
_CANCELLED_SHARE = 0.1
_ABOUT_AS_LOUD = 0.7
_OFFSET = 0.005
_EDGE = 1600
_FAR = 1e-3
_BLOCKS = 64
_LEAST_BLOCK = 1600


def is_of_whole_file(subtype: str) -> bool:
    """Tells whether scaling a part of a file of this subtype takes the whole file."""
    return subtype in _FLOATS


def may_be_shifted(samples: np.ndarray, subtype: str) -> bool:
    """Tells whether samples are scaled if the rest of their file is as quiet.

    Args:
        samples: float32 `[samples, channels]`, of any part of a file.
        subtype: As for `fit_level`.
    """
    if subtype not in _SHIFTS:
        return False
    return _peak(samples) <= _SHIFTS[subtype][-1][0]


def fit_level(samples: np.ndarray, subtype: str) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Scales samples that are far above full scale, or far below it.

    Peaks of up to twice full scale are usual after decoding and mixing. They are scaled without
    a finding, or left as they are if clipping so few samples is inaudible.

    Args:
        samples: float32 `[samples, channels]`.
        subtype: Coding of the file, as libsndfile calls it. Only `FLOAT` and `DOUBLE` can hold
            samples that were divided twice, only `PCM_24` and `PCM_32` integers of fewer bits.

    Returns:
        The samples, scaled if their level is implausible, and findings.
    """
    peak = _peak(samples)
    if not np.isfinite(peak):
        return samples, ()
    if subtype in _FLOATS and _TWICE_DIVIDED < peak <= _QUIET:
        if peak > 1.01 / FULL_SCALE_16:
            detail = f"no sample is louder than {peak:.2g} of full scale"
            return samples, (Finding("absurd level", detail),)
        detail = f"no sample is louder than {peak:.2g} of full scale: multiplied by {FULL_SCALE_16}"
        return samples * np.float32(FULL_SCALE_16), (Finding("absurd level", detail),)
    if factor := _shift(samples, subtype, peak):
        detail = f"no sample is louder than {peak:.2g} of full scale: multiplied by {factor:.0f}"
        return samples * np.float32(factor), (Finding("absurd level", detail),)
    if peak <= 1.0:
        return samples, _at_the_limits(samples, peak)
    beyond = int(np.count_nonzero(np.abs(samples) > 1.0))
    if beyond <= _FEW * samples.size:
        if peak <= _LOUD:
            return samples, ()
        detail = f"{beyond} samples reach {peak:.4g} times full scale: clipped"
        return np.clip(samples, -1.0, 1.0), (Finding("absurd level", detail),)
    scale = peak
    if peak >= _SURELY_INTEGERS:
        # Filters overshoot: the peak may exceed the scale of the integers, by less than twice.
        scale = max(next((one for one in _INTEGER_SCALES if peak <= _LOUD * one), peak), peak)
    scaled = samples / np.float32(scale)
    if peak <= _LOUD and beyond <= _AT_THE_LIMITS * samples.size:
        return scaled, ()
    detail = f"samples reach {peak:.4g} times full scale: divided by {scale:.10g}"
    return scaled, (Finding("absurd level", detail),)


def _peak(samples: np.ndarray) -> float:
    return max(float(samples.max()), -float(samples.min())) if samples.size else 0.0


def _shift(samples: np.ndarray, subtype: str, peak: float) -> float:
    """Returns the factor for integers of fewer bits than the file has; 0 if there are none."""
    for limit, factor in _SHIFTS.get(subtype, ()):
        if _LEAST_STEPS * _STEPS[subtype] < peak <= limit:
            # Multiples of 16-bit steps come from a quiet 16-bit recording that was converted.
            steps = samples * np.float32(FULL_SCALE_16)
            return 0.0 if np.array_equal(steps, np.rint(steps)) else factor
    return 0.0


def _at_the_limits(samples: np.ndarray, peak: float) -> tuple[Finding, ...]:
    """Detects samples that were clipped before they were written."""
    limit = 1.0 - 1.5 / FULL_SCALE_16
    if peak < limit:
        return ()
    share = float(np.mean(np.abs(samples) >= limit))
    if share < _AT_THE_LIMITS:
        return ()
    return (Finding("absurd level", f"{share:.0%} of the samples are at full scale: clipped"),)


def mix(samples: np.ndarray) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Averages channels, or takes the loudest if they cancel each other out.

    Args:
        samples: float32 `[samples, channels]`.

    Returns:
        `[samples]`, and findings.
    """
    channels = samples.shape[1]
    # No mean over one channel: it would take a third of the total time.
    if channels == 1:
        return samples[:, 0], ()
    # A product: numpy's mean over so short an axis takes ten times as long.
    mixed = samples @ np.full(channels, 1 / channels, samples.dtype)
    energy, left = _energies(samples), _energies(mixed[:, None])[:, 0]
    parts = energy.mean(axis=1)
    cancelled = parts[left < _CANCELLED / channels * parts].sum()
    if not cancelled > _CANCELLED_SHARE * parts.sum():
        return mixed, ()
    # Of channels about as loud as the loudest the first, so that all parts of a file agree.
    loud = energy.sum(axis=0)
    channel = int(np.argmax(loud > _ABOUT_AS_LOUD * loud.max()))
    detail = f"its {channels} channels cancel each other out: channel {channel + 1} is read"
    return np.ascontiguousarray(samples[:, channel]), (Finding("cancelled channels", detail),)


def _energies(samples: np.ndarray) -> np.ndarray:
    """Computes sums of squares around the mean, `[blocks, channels]`: an offset is not sound."""
    length, channels = samples.shape
    blocks = max(min(length // _LEAST_BLOCK, _BLOCKS), 1)
    inside = samples[: length // blocks * blocks].reshape(blocks, -1, channels)
    squares = np.einsum("bsc,bsc->bc", inside, inside)
    sums = np.einsum("bsc->bc", inside)
    return np.maximum(squares - sums**2 / inside.shape[1], 0.0)


def silence(samples: np.ndarray) -> tuple[Finding, ...]:
    """Detects a recording of one value throughout: digital silence, or an offset.

    Args:
        samples: `[samples]`, at least one.

    Returns:
        A finding if they never vary by more than two steps of 16 bits, or, as an offset after lossy
        coding, hardly vary from one to the next except at the ends.
    """
    step = 1.0 / FULL_SCALE_16
    # For nearly all recordings a few samples suffice.
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
    detail = "digital silence" if is_zero else f"an offset of {mean:.3f}"
    return (Finding("silent audio", f"nothing but {detail} from beginning to end"),)
