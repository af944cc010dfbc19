"""Meanings of sentences, independent of a language.

A meaning is a kind (`timetable`), a template of that kind (the train leaves, the bus comes) and
numbers (14, 25). The grammar of each language words it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

Values = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a sentence.

    Attributes:
        kind: One of `KINDS`.
        template: Number of a template of that kind, which is the same in all languages.
        values: The numbers in the sentence.
    """

    kind: str
    template: int
    values: Values


@dataclasses.dataclass(frozen=True)
class Kind:
    """Distribution of the meanings of one kind.

    Attributes:
        weight: Relative frequency of the kind.
        draws: A function per template that draws the values.
    """

    weight: float
    draws: tuple[Callable[[np.random.Generator], Values], ...]


def _between(low: int, high: int) -> Callable[[np.random.Generator], Values]:
    """Draws a number, of which all numbers of digits are equally likely."""

    def draw(rng: np.random.Generator) -> Values:
        digits = [count for count in range(1, 6) if low < 10**count and high >= 10 ** (count - 1)]
        count = int(rng.choice(digits))
        first, last = max(low, 10 ** (count - 1)), min(high, 10**count - 1)
        return (int(rng.integers(first, last + 1)),)

    return draw


def _counted(low: int, high: int) -> Callable[[np.random.Generator], Values]:
    """Draws a number of things, but not 101, 201 ..., whose grammar is disputed somewhere."""
    between = _between(low, high)

    def draw(rng: np.random.Generator) -> Values:
        while True:
            (number,) = between(rng)
            if number < 100 or number % 100 != 1:
                return (number,)

    return draw


def _each(*ranges: tuple[int, int]) -> Callable[[np.random.Generator], Values]:
    """Draws a number from each range, uniformly."""
    return lambda rng: tuple(int(rng.integers(low, high + 1)) for low, high in ranges)


def _date(rng: np.random.Generator) -> Values:
    month = int(rng.integers(1, 13))
    last = 29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31
    return int(rng.integers(1, last + 1)), month


def _weekday_date(rng: np.random.Generator) -> Values:
    return int(rng.integers(7)), *_date(rng)


def _full_date(rng: np.random.Generator) -> Values:
    day, month = _date(rng)
    # Only leap years have a 29th of February.
    return min(day, 28) if month == 2 else day, month, int(rng.integers(1900, 2021))


def _clock(rng: np.random.Generator) -> Values:
    return int(rng.integers(1, 13)), 5 * int(rng.integers(0, 12))


def _sum(rng: np.random.Generator) -> Values:
    return int(rng.integers(1, 60)), int(rng.integers(1, 40))


def _difference(rng: np.random.Generator) -> Values:
    smaller, rest = _sum(rng)
    return smaller + rest, smaller


def _temperature(rng: np.random.Generator) -> Values:
    degrees = int(rng.integers(2, 40))
    return (-degrees if degrees <= 20 and rng.random() < 0.4 else degrees,)


KINDS: dict[str, Kind] = {
    "label": Kind(2.0, (_between(1, 999), _between(1, 999), _between(1, 299), _between(10, 9999))),
    "digits": Kind(1.0, (_each(*[(0, 9)] * 4), _each(*[(0, 9)] * 3))),
    "sum": Kind(1.0, (_sum, _difference)),
    "ordinal": Kind(2.0, (_each((1, 30)), _each((1, 50)), _each((1, 60)))),
    "date": Kind(2.0, (_date, _date, _date)),
    "weekday_date": Kind(1.5, (_weekday_date, _weekday_date)),
    "full_date": Kind(0.5, (_full_date,)),
    "year": Kind(1.5, (_each((1500, 2029)), _each((1930, 2029)))),
    "clock": Kind(2.0, (_clock, _clock, _clock)),
    "timetable": Kind(2.0, (_each((6, 23), (2, 59)),) * 3),
    "price": Kind(1.5, (_counted(2, 999), _counted(2, 999))),
    "price_cents": Kind(1.0, (_each((2, 99), (2, 99)),)),
    "percent": Kind(1.0, (_each((5, 99)),)),
    "decimal": Kind(1.0, (_each((2, 19), (1, 9)),)),
    "temperature": Kind(1.5, (_temperature, _each((2, 95)))),
    "quantity": Kind(
        3.0,
        (
            _counted(2, 999),
            _counted(2, 299),
            _counted(5, 299),
            _each((2, 99)),
            _counted(2, 99),
            _counted(2, 299),
            _counted(20, 999),
        ),
    ),
}
"""All kinds of meanings, by name."""


def draw_meaning(rng: np.random.Generator, kinds: Sequence[str] = ()) -> Meaning:
    """Draws a meaning from some kinds, by their weights; from all kinds by default."""
    names = tuple(kinds) or tuple(KINDS)
    kind = names[int(rng.choice(len(names), p=_probabilities(names)))]
    template = int(rng.integers(len(KINDS[kind].draws)))
    return Meaning(kind, template, KINDS[kind].draws[template](rng))


@functools.cache
def _probabilities(kinds: tuple[str, ...]) -> np.ndarray:
    weights = np.array([KINDS[name].weight for name in kinds])
    return weights / weights.sum()


def split_of(meaning: Meaning) -> str:
    """Returns the split of a meaning, which is the same in all languages and corpora.

    A twentieth of all meanings is for `test` and another one for `validation`. Training examples
    never contain them, neither as speech nor as text nor as a translation.

    Returns:
        `train`, `validation` or `test`.
    """
    digest = hashlib.blake2b(repr(dataclasses.astuple(meaning)).encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")
