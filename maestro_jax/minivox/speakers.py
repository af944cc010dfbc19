"""Who speaks: voice variants of espeak-ng, each with its own pitch and pace."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

# Variants that are plain human voices. Robots, whispers, echoes and shrill ones are left out, and
# so are near copies of a variant in another list: a voice unheard in training shall be a new one.
VARIANTS: dict[str, tuple[str, ...]] = {
    "train": (
        "", "m1", "m2", "m4", "m5", "m7", "f1", "f3", "f4", "f5",
        "Alex", "Andy", "Diogo", "Gene", "Mario", "Mike", "Storm", "adam",
        "anika", "ed", "robert", "steph", "Andrea", "antonio", "sandro",
    ),
    "validation": ("m6", "Annie", "max"),
    "test": ("m3", "f2", "belinda", "paul", "Denis"),
}  # fmt: skip
"""Voice variants by part; no variant is in two of them."""

_SPEAKERS_A_VARIANT = 3


@dataclasses.dataclass(frozen=True)
class Speaker:
    """One person.

    Attributes:
        name: Unique within a language.
        variant: Voice variant of espeak-ng.
        words_per_minute: Usual pace.
        pitch: Usual pitch, 0 to 99.
    """

    name: str
    variant: str
    words_per_minute: float
    pitch: float


@functools.cache
def speakers(part: str) -> tuple[Speaker, ...]:
    """The speakers of a part of the corpus: `train`, `validation` or `test`."""
    people = []
    for variant in VARIANTS[part]:
        for place in range(_SPEAKERS_A_VARIANT):
            name = f"{variant or 'plain'}-{place + 1}"
            rng = np.random.default_rng(list(name.encode()))
            pace, pitch = rng.uniform(150, 195), rng.uniform(30, 70)
            people.append(Speaker(name, variant, pace, pitch))
    return tuple(people)
