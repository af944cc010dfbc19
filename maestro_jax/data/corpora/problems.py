"""What is wrong with a corpus: counted, written down, and never silent."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from maestro_jax.errors import UserError

KINDS = {
    "missing table": "a split whose table is not there",
    "bad row": "a line that does not have the columns of its table",
    "bad value": "a line with a value that means nothing",
    "unknown split": "a line of a split that the corpus does not have",
    "duplicate id": "a second utterance with the id of another one of its split",
    "no counterpart": "a line whose other half is not in the table that it is joined with",
    "broken character": "half of a character, which is no text: the rest of it is kept",
    "empty text": "nothing left of the transcript once it is normalised",
    "empty translation": "no translation",
    "incomplete": "no transcript, or no usable translation: kept for what there is, or for a test",
    "missing audio": "the file is not there",
    "unreadable audio": "the file cannot be decoded",
    "empty audio": "no samples",
    "outside of audio": "begins after the end of its file",
    "silent audio": "one value from beginning to end: digital silence, or an offset",
    "cut short": "ends after the end of its file, or the file before the length that its header "
    "states: what is there is kept",
    "damaged audio": "a part of the file cannot be decoded: the rest is kept",
    "header mismatch": "the header contradicts what the file holds, all of which is kept",
    "absurd level": "samples far beyond full scale, which are scaled, or all at its limits: kept",
    "cancelled channels": "the average of the channels is nearly nothing: the loudest one is kept",
    "several tracks": "other tracks beside the first one, which is kept",
    "set aside": "the corpus says itself that there is nothing of use, or to score",
    "partly transcribed": "some of what is said has no transcript: the rest of it is kept",
}
"""Every kind of problem. Utterances with one are left out, but for those of `KEPT`."""
KEPT = (
    "broken character",
    "incomplete",
    "cut short",
    "damaged audio",
    "header mismatch",
    "absurd level",
    "cancelled channels",
    "several tracks",
    "partly transcribed",
)
EXPECTED = ("incomplete", "set aside", "partly transcribed")
"""What makers of corpora mark on purpose: counted like the rest, but nothing to mend."""


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: One of `KINDS`.
        split: Where, as far as that is known.
        item: The utterance, or file and line.
        detail: What was found there.
    """

    kind: str
    split: str
    item: str
    detail: str


@dataclasses.dataclass
class Problems:
    """All that is wrong with a config of a corpus.

    Attributes:
        strict: Whether the first one that is not of `EXPECTED` is an error.
        found: All of them, in the order in which they were found.
    """

    strict: bool = False
    found: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, kind: str, *, split: str = "", item: str, detail: str = "") -> None:
        """Write one down.

        Raises:
            UserError: It is not to be tolerated (`strict`).
            ValueError: There is no such kind.
        """
        self.extend([Problem(kind, split, item, detail)])

    def extend(self, problems: Iterable[Problem]) -> None:
        """Write several down; see `add`."""
        for problem in problems:
            if problem.kind not in KINDS:
                raise ValueError(f"{problem.kind!r} is not a kind of problem")
            if self.strict and problem.kind not in EXPECTED:
                detail = f" ({problem.detail})" if problem.detail else ""
                raise UserError(
                    f"{problem.item}: {problem.kind}{detail}; mend it, or leave --strict out to go "
                    "on without it."
                )
            self.found.append(Problem(*problem))

    def counts(self, split: str) -> dict[str, int]:
        """How many of each kind there are in a split, the most frequent first."""
        kinds = collections.Counter(p.kind for p in self.found if p.split == split)
        return dict(kinds.most_common())

    def summary(self) -> str:
        """How many of each kind there are in all splits, and the first of the most frequent."""
        kinds = collections.Counter(problem.kind for problem in self.found).most_common()
        if not kinds:
            return "no utterance is listed"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        first = next(problem for problem in self.found if problem.kind == kinds[0][0])
        detail = f": {first.detail.rstrip('.')}" if first.detail else ""
        return f"{counts}; the first {first.kind} is {first.item}{detail}"

    def table(self) -> str:
        """All of them as tab-separated lines under a header."""
        lines = [Problem._fields, *self.found]
        return "".join(
            "\t".join(" ".join(value.split()) for value in line) + "\n" for line in lines
        )
