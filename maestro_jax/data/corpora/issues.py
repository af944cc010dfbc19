"""Kinds of issues with the data of a corpus, and the log in which they are collected."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from maestro_jax.errors import UserError

ISSUE_KINDS = {
    "missing table": "the table of a split does not exist",
    "bad row": "a line does not have the columns of its table",
    "bad value": "a line has a value that cannot be used",
    "unknown split": "a line names a split that the corpus does not have",
    "duplicate id": "another utterance of the same split has the same id",
    "no counterpart": "a line has no counterpart in the table or directory that it belongs with",
    "broken character": "half of a surrogate pair, which is no text: the rest is kept",
    "empty text": "the transcript is empty after normalisation",
    "empty translation": "there is no translation",
    "incomplete": "no transcript, or no usable translation: what there is, is kept",
    "missing audio": "the audio file does not exist",
    "unreadable audio": "the audio file cannot be decoded",
    "empty audio": "there are no samples",
    "outside of audio": "the utterance begins after the end of its file",
    "silent audio": "all samples have one value: digital silence, or an offset",
    "cut short": "the utterance ends after the end of its file, or the file ends before the length "
    "that its header states: the rest is kept",
    "damaged audio": "a part of the file cannot be decoded: the rest is kept",
    "header mismatch": "the header contradicts the content of the file, all of which is kept",
    "absurd level": "samples far beyond full scale or far below it, which are scaled, or all at "
    "full scale: kept",
    "cancelled channels": "the channels cancel each other out: the loudest one is kept",
    "several tracks": "the file has several tracks: the first one is kept",
    "set aside": "the corpus marks the segment as one without words, or not to be scored",
    "partly transcribed": "the transcript leaves out some of the speech: the segment is kept",
}
"""Description of each kind of issue. Utterances with an issue are left out, except for those of
`KEPT_KINDS`."""

KEPT_KINDS = (
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
"""Kinds of issues whose utterances are kept, in whole or in part."""

EXPECTED_KINDS = ("incomplete", "set aside", "partly transcribed")
"""Kinds that the makers of a corpus mark on purpose; `--strict` does not refuse them."""


class Issue(NamedTuple):
    """An issue with one utterance or one line.

    Attributes:
        kind: One of `ISSUE_KINDS`.
        split: Split of the utterance, as far as it is known.
        item: Id of the utterance, or file and line.
        detail: What exactly was found.
    """

    kind: str
    split: str
    item: str
    detail: str


@dataclasses.dataclass
class IssueLog:
    """Collects the issues of one config of a corpus.

    Attributes:
        strict: Whether the first issue that is not of `EXPECTED_KINDS` raises an error.
        issues: All issues, in the order in which they were found.
    """

    strict: bool = False
    issues: list[Issue] = dataclasses.field(default_factory=list)

    def add(self, kind: str, *, split: str = "", item: str, detail: str = "") -> None:
        """Adds an issue.

        Raises:
            UserError: The log is strict, and the kind is not an expected one.
            ValueError: There is no such kind.
        """
        self.extend([Issue(kind, split, item, detail)])

    def extend(self, issues: Iterable[Issue]) -> None:
        """Adds several issues; see `add`."""
        for issue in issues:
            if issue.kind not in ISSUE_KINDS:
                raise ValueError(f"{issue.kind!r} is not a kind of issue")
            if self.strict and issue.kind not in EXPECTED_KINDS:
                detail = f" ({issue.detail})" if issue.detail else ""
                raise UserError(
                    f"{issue.item}: {issue.kind}{detail}; correct it, or leave --strict out to "
                    "skip it."
                )
            self.issues.append(Issue(*issue))

    def counts(self, split: str) -> dict[str, int]:
        """Counts the issues of a split by kind, the most frequent kind first."""
        kinds = collections.Counter(issue.kind for issue in self.issues if issue.split == split)
        return dict(kinds.most_common())

    def summary(self) -> str:
        """Returns the number of issues of each kind, and the first issue of the most frequent."""
        kinds = collections.Counter(issue.kind for issue in self.issues).most_common()
        if not kinds:
            return "no utterance is listed"
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds)
        first = next(issue for issue in self.issues if issue.kind == kinds[0][0])
        detail = f": {first.detail.rstrip('.')}" if first.detail else ""
        return f"{counts}; the first {first.kind} is {first.item}{detail}"

    def table(self) -> str:
        """Returns all issues as tab-separated lines with a header."""
        lines = [Issue._fields, *self.issues]
        return "".join(
            "\t".join(" ".join(value.split()) for value in line) + "\n" for line in lines
        )
