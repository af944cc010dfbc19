"""Divides utterances into training, validation and test sets, by speakers and sentences."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence

from maestro_jax.experiments.quickstart.survey import Heard
from maestro_jax.text.normalizers import normalize

VALIDATION, TEST = 0.08, 0.1
"""Fractions of the hours of a corpus without splits that are held out."""
MOST_SECONDS = {"validation": 1800.0, "test": 3600.0}
MOST_UNKNOWN = 0.1
"""Fraction of the hours whose speakers may be unknown if whole speakers are held out."""
REPEATED = 5
"""How often each sentence occurs, on average, where they are commands from a list."""
_TRIES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The utterances of each split.

    Attributes:
        of: Split of each utterance with a text, in their order; empty for one that is left out.
        by: What decided: `given`, `speakers`, `sentences` or `recordings`; of the test set and of
            the validation set, joined by `+`, if it is not the same.
        speakers_apart: Whether no speaker of the test set, or without any of the validation set, is
            trained on; None if speakers are unknown.
        sentences_shared: Fraction of the test utterances whose sentence occurs in training.
    """

    of: tuple[str, ...]
    by: str
    speakers_apart: bool | None
    sentences_shared: float


def split_utterances(utterances: Sequence[Heard], seed: int = 0) -> Splits:
    """Divides utterances; splits that the corpus has are kept, and those that it lacks are made.

    Whole speakers are held out, chosen so that as few of their sentences as possible occur in
    training. With fewer than three speakers, or unknown ones, whole sentences are held out; or
    single recordings, where sentences are commands that occur `REPEATED` times each. So it is with
    a validation set for which each speaker would be too many hours.

    Args:
        utterances: Utterances with a text.
        seed: Seed of the choice.
    """
    found = [each.entry.split for each in utterances]
    ways = {}
    for name, fraction in (("test", TEST), ("validation", VALIDATION)):
        if name in found:
            ways[name] = "given"
            continue
        candidates = [index for index, split in enumerate(found) if split in ("", "train")]
        chosen, ways[name] = _choose(utterances, candidates, name, fraction, seed)
        for index in chosen:
            found[index] = name
    found = [split or "train" for split in found]
    by = "+".join(dict.fromkeys((ways["test"], ways["validation"])))
    return Splits(of=tuple(found), by=by, **_described(utterances, found))


def _choose(
    utterances: Sequence[Heard],
    candidates: Sequence[int],
    name: str,
    fraction: float,
    seed: int,
    *,
    by_speaker: bool = True,
) -> tuple[set[int], str]:
    """Returns the utterances to hold out, and what they are: see `Splits.by`."""
    total = sum(utterances[index].seconds for index in candidates)
    wanted = min(total * fraction, MOST_SECONDS[name])
    speakers = _grouped(utterances, candidates, by_speaker=True)
    sentences = {index: _sentence(utterances[index]) for index in candidates}
    # Enough must be left to train on, and for a validation set after a test set.
    unknown = sum(utterances[index].seconds for index in speakers.pop("", ()))
    # A few whose speakers are not known stay in training.
    by_speaker = by_speaker and len(speakers) >= 3 and unknown <= MOST_UNKNOWN * total
    by, groups = "speakers", speakers
    if not by_speaker:
        by, groups = "sentences", _grouped(utterances, candidates, by_speaker=False)
        # Of ten commands, one that is held out would never be learned.
        if len(candidates) >= REPEATED * len(groups) or len(groups) < 3:
            by = "recordings"
            groups = {f"{index:09}": [index] for index in candidates}
    if len(groups) < 2:
        return set(), by
    seconds = {
        key: sum(utterances[index].seconds for index in members) for key, members in groups.items()
    }
    best: tuple[float, set[int], float] | None = None
    for attempt in range(_TRIES if by_speaker else 1):
        rng = random.Random(f"{seed}/{name}/{attempt}")
        # One voice tells little about others.
        fewest = 2 if by_speaker and len(groups) >= 10 else 1
        chosen = _pick(seconds, wanted, fewest, rng)
        held = {index for key in chosen for index in groups[key]}
        rest = {sentences[index] for index in candidates if index not in held}
        shared = sum(sentences[index] in rest for index in held) / max(len(held), 1)
        size = sum(seconds[key] for key in chosen)
        cost = shared + abs(math.log(max(size, 1e-3) / max(wanted, 1e-3)))
        if best is None or cost < best[0]:
            best = (cost, held, size)
    assert best is not None
    if by_speaker and name == "validation" and best[2] > 2 * wanted:
        # New voices are worth much to a test, but to a validation set less than to training.
        return _choose(utterances, candidates, name, fraction, seed, by_speaker=False)
    return best[1], by


def _pick(
    seconds: Mapping[str, float], wanted: float, fewest: int, rng: random.Random
) -> list[str]:
    """Picks groups at random until they have as many seconds as are wanted."""
    order = sorted(seconds)
    rng.shuffle(order)
    chosen: list[str] = []
    size = 0.0
    for key in order:
        if size >= 0.9 * wanted and len(chosen) >= fewest:
            break
        if size + seconds[key] <= (1.3 if len(chosen) >= fewest else 2.0) * wanted:
            chosen.append(key)
            size += seconds[key]
    if size < 0.5 * wanted and (rest := set(order) - set(chosen)) and len(order) > 1:
        # All others are larger than what is wanted: the smallest.
        chosen.append(min(rest, key=lambda key: (seconds[key], key)))
    return chosen


def _grouped(
    utterances: Sequence[Heard], indices: Sequence[int], *, by_speaker: bool
) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for index in indices:
        each = utterances[index]
        groups[each.entry.speaker if by_speaker else _sentence(each)].append(index)
    return dict(groups)


def _sentence(each: Heard) -> str:
    return normalize(each.entry.text or each.entry.translation, each.entry.language)


def _described(utterances: Sequence[Heard], found: Sequence[str]) -> dict:
    speakers: dict[str, set[str]] = collections.defaultdict(set)
    for each, split in zip(utterances, found, strict=True):
        speakers[split].add(each.entry.speaker)
    trained = {
        _sentence(each) for each, split in zip(utterances, found, strict=True) if split == "train"
    }
    tested = [each for each, split in zip(utterances, found, strict=True) if split == "test"]
    shared = sum(_sentence(each) in trained for each in tested) / max(len(tested), 1)
    known = "" not in set().union(*speakers.values())
    others = speakers["test"] or speakers["validation"]
    apart = others.isdisjoint(speakers["train"]) if known else None
    return {"speakers_apart": apart, "sentences_shared": shared}
