"""Cut a long recording into stretches that a model can take, where it is quietest."""

from __future__ import annotations

import numpy as np

from maestro_jax.data.streams import SAMPLE_RATE

_WINDOW = SAMPLE_RATE // 50


def segment(samples: np.ndarray, longest: int) -> list[np.ndarray]:
    """Stretches that together are the whole recording.

    A cut falls into the quietest 20 ms of the second half of what is left of the limit, so that
    words are seldom torn and no stretch is shorter than half the limit but the last.

    Args:
        samples: `[samples]` at 16 kHz.
        longest: Most samples of a stretch.

    Returns:
        The stretches in order; one if the recording fits.
    """
    if longest < 2 * _WINDOW:
        raise ValueError(f"A stretch must hold at least {2 * _WINDOW} samples, not {longest}.")
    stretches = []
    rest = samples
    while len(rest) > longest:
        begin = longest // 2
        region = rest[begin:longest].astype(np.float64)
        count = len(region) // _WINDOW
        energy = np.square(region[: count * _WINDOW]).reshape(count, _WINDOW).sum(axis=1)
        cut = begin + int(np.argmin(energy)) * _WINDOW + _WINDOW // 2
        stretches.append(rest[:cut])
        rest = rest[cut:]
    stretches.append(rest)
    return stretches
