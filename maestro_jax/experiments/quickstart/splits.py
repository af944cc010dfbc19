"""Divides utterances into training, validation and test sets, by speakers and sentences."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Mapping, Sequence

from maestro_jax.experiments.quickstart.survey import Heard
from maestro_jax.text.normalizers import normalize

VALIDATION, TEST = 0.08, 0.1
"""Fractions of the hours of a corpus without splits that are held out."""
MOST_SECONDS = {"validation": 1800.0, "test": 3600.0}
_TRIES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The utterances of each split.

    Attributes:
        of: Split of each utterance with a text, in their order; empty for one that is left out.
        by: What decided: `given`, `speakers` or `sentences`.
        speakers_apart: Whether no speaker is in more than one split; None if speakers are unknown.
        sentences_shared: Fraction of the test utterances whose sentence occurs in training.
    """

    of: tuple[str, ...]
    by: str
    speakers_apart: bool | None
    sentences_shared: float


def split_utterances(utterances: Sequence[Heard], seed: int = 0) -> Splits:
    """Divides utterances; splits that the corpus has are kept, and those that it lacks are made.

    Whole speakers are held out, chosen so that as few of their sentences as possible occur in
    training. With fewer than three speakers, or unknown ones, whole sentences are held out.

    Args:
        utterances: Utterances with a text.
        seed: Seed of the choice.
    """
    given = [each.entry.split for each in utterances]
    found = list(given)
    by = "given"
    for name, fraction in (("test", TEST), ("validation", VALIDATION)):
        if name in found:
            continue
        candidates = [index for index, split in enumerate(found) if split in ("", "train")]
        chosen, by = _choose(utterances, candidates, name, fraction, seed)
        for index in chosen:
            found[index] = name
    found = [split or "train" for split in found]
    return Splits(of=tuple(found), by=by, **_described(utterances, found))


def _choose(
    utterances: Sequence[Heard], candidates: Sequence[int], name: str, fraction: float, seed: int
) -> tuple[set[int], str]:
    """Returns the utterances to hold out, and whether they are whole speakers or sentences."""
    total = sum(utterances[index].seconds for index in candidates)
    wanted = min(total * fraction, MOST_SECONDS[name])
    speakers = _grouped(utterances, candidates, by_speaker=True)
    sentences = {index: _sentence(utterances[index]) for index in candidates}
    # Enough must be left to train on, and for a validation set after a test set.
    by_speaker = len(speakers) >= 3 and "" not in speakers
    groups = speakers if by_speaker else _grouped(utterances, candidates, by_speaker=False)
    if len(groups) < 2:
        return set(), "sentences"
    seconds = {
        key: sum(utterances[index].seconds for index in members) for key, members in groups.items()
    }
    best: tuple[float, set[int]] | None = None
    for attempt in range(_TRIES if by_speaker else 1):
        rng = random.Random(f"{seed}/{name}/{attempt}")
        # One voice tells little about others.
        fewest = 2 if by_speaker and len(groups) >= 10 else 1
        chosen = _pick(seconds, wanted, fewest, rng)
        held = {index for key in chosen for index in groups[key]}
        rest = {sentences[index] for index in candidates if index not in held}
        shared = sum(sentences[index] in rest for index in held) / max(len(held), 1)
        size = sum(seconds[key] for key in chosen)
        cost = shared + abs(size - wanted) / max(wanted, 1e-9)
        if best is None or cost < best[0]:
            best = (cost, held)
    assert best is not None
    return best[1], "speakers" if by_speaker else "sentences"


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
    # All of them are larger than what is wanted: the smallest.
    return chosen or [min(order, key=lambda key: (seconds[key], key))]


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
        speakers[each.entry.speaker].add(split)
    trained = {
        _sentence(each) for each, split in zip(utterances, found, strict=True) if split == "train"
    }
    tested = [each for each, split in zip(utterances, found, strict=True) if split == "test"]
    shared = sum(_sentence(each) in trained for each in tested) / max(len(tested), 1)
    known = "" not in speakers
    apart = all(len(splits) == 1 for splits in speakers.values()) if known else None
    return {"speakers_apart": apart, "sentences_shared": shared}
