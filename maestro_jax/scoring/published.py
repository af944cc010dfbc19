"""Published scores that tables show beside our own, each with its source.

A system that was scored on the same test sets, with texts normalised alike and by a model trained
for them, is a column of the table. What cannot be compared stands apart, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

Group = frozenset[str]
"""Rows that a published average is over."""


@dataclasses.dataclass(frozen=True)
class PublishedSystem:
    """What was published about one system on one test set.

    Attributes:
        name: Name of the system, with its size where a paper has several.
        source: Paper and table, or page and its date.
        rows: Scores by row of a table: by language, by the language that is translated, or by the
            name that a suite gives the row.
        averages: Averages as they are stated, by the rows that they are over. They were computed
            before rounding, so that the average of `rows` may differ in the last digit.
        caveat: Why the scores do not compare with ours; empty where they do.
    """

    name: str
    source: str
    rows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    averages: Mapping[Group, float] = dataclasses.field(default_factory=dict)
    caveat: str = ""

    @property
    def comparable(self) -> bool:
        """Whether the scores compare with ours."""
        return not self.caveat

    def average(self, rows: Collection[str]) -> float | None:
        """Returns the average over some rows: the stated one, else that of the scores.

        Args:
            rows: Rows that the average is over.

        Returns:
            None where it was not stated and a row has no score.
        """
        if (stated := self.averages.get(frozenset(rows))) is not None:
            return stated
        if not rows or any(row not in self.rows for row in rows):
            return None
        return sum(self.rows[row] for row in rows) / len(rows)


VOXPOPULI_LANGUAGES = (
    *("en", "de", "fr", "es", "pl", "it", "ro", "nl", "cs", "hu", "hr", "sk", "fi", "sl"),
)
"""The 14 languages of VoxPopuli over which papers average, in the order of MAESTRO's table."""

COVOST_GROUPS: Mapping[str, tuple[str, ...]] = {
    "high": ("fr", "de", "es", "ca"),
    "mid": ("fa", "it", "ru", "pt", "zh"),
    "low": ("et", "mn", "nl", "tr", "ar", "sv", "lv", "sl", "ta", "ja", "id", "cy"),
}
"""Source languages of CoVoST-2's 21 directions into English, by their resources (Wang et al.,
2020)."""

SPEECHSTEW_ROWS = (
    *("LibriSpeech clean", "LibriSpeech other", "AMI IHM", "AMI SDM1", "TED-LIUM"),
    *("Switchboard", "CallHome", "Common Voice"),
)
"""The eight test sets of SpeechStew, in the order of MAESTRO's table."""

_MAESTRO = "Chen et al. (2022), MAESTRO, arXiv 2204.03409"
_MSLAM = "Bapna et al. (2022), mSLAM, arXiv 2202.01374"
_XLS_R = "Babu et al. (2021), XLS-R, arXiv 2111.09296"
_LEADERBOARD = "Open ASR leaderboard, scripts/data/en_shortform.csv of 21 August 2026"
_LEADERBOARD_CAVEAT = "other data; texts normalised as Whisper does"
_ALL_14 = frozenset(VOXPOPULI_LANGUAGES)


def _voxpopuli(*values: float) -> dict[str, float]:
    return dict(zip(VOXPOPULI_LANGUAGES, values, strict=True))


VOXPOPULI: tuple[PublishedSystem, ...] = (
    PublishedSystem(
        "XLS-R 1B",
        f"{_XLS_R}, table of VoxPopuli",
        _voxpopuli(8.8, 11.5, 10.8, 8.2, 7.7, 15.1, 7.3, 12.5, 8.7, 9.6, 10.0, 7.1, 11.3, 19.5),
        {_ALL_14: 10.6},
    ),
    PublishedSystem(
        "w2v-BERT",
        f"{_MAESTRO}, figure of VoxPopuli by language: 0.6B",
        _voxpopuli(6.7, 8.4, 8.3, 6.7, 6.2, 13.5, 9.3, 9.7, 7.4, 8.0, 9.1, 5.8, 9.2, 15.7),
        {_ALL_14: 8.8},
    ),
    PublishedSystem("mSLAM 0.6B", f"{_MSLAM}, table of VoxPopuli", averages={_ALL_14: 9.2}),
    PublishedSystem("mSLAM 2B", f"{_MSLAM}, table of VoxPopuli", averages={_ALL_14: 9.1}),
    PublishedSystem(
        "MAESTRO",
        f"{_MAESTRO}, figure of VoxPopuli by language: 0.6B, graphemes, text from VoxPopuli",
        _voxpopuli(6.3, 7.9, 7.9, 7.2, 5.7, 13.3, 7.3, 9.2, 6.9, 7.1, 8.5, 5.2, 8.6, 14.2),
        {_ALL_14: 8.2},
    ),
    PublishedSystem(
        "MAESTRO, more text",
        f"{_MAESTRO}, table of VoxPopuli: 0.6B, text from VoxPopuli and mC4",
        averages={_ALL_14: 8.1},
    ),
    *(
        PublishedSystem(name, _LEADERBOARD, {"en": rate}, caveat=caveat)
        for name, rate, caveat in (
            ("Whisper large-v3", 9.54, f"zero-shot; {_LEADERBOARD_CAVEAT}"),
            ("Parakeet RNN-T 1.1B", 5.44, _LEADERBOARD_CAVEAT),
            ("Parakeet TDT 0.6B v3", 6.09, _LEADERBOARD_CAVEAT),
            ("Canary 1B flash", 5.63, _LEADERBOARD_CAVEAT),
            ("Canary 1B v2", 6.25, _LEADERBOARD_CAVEAT),
        )
    ),
)
"""Word error rates on VoxPopuli, in percent."""


def _by_group(high: float, mid: float, low: float, everything: float) -> dict[Group, float]:
    """Returns averages over the groups of CoVoST-2 and over all its directions."""
    groups = [frozenset(languages) for languages in COVOST_GROUPS.values()]
    return {**dict(zip(groups, (high, mid, low), strict=True)), _ALL_21: everything}


_ALL_21: Group = frozenset(language for group in COVOST_GROUPS.values() for language in group)

COVOST: tuple[PublishedSystem, ...] = (
    PublishedSystem(
        "XLS-R 2B",
        f"{_XLS_R}, table of X to English",
        {
            **{"fr": 37.6, "de": 33.6, "es": 39.2, "ca": 33.8},
            **{"fa": 12.9, "it": 34.9, "ru": 39.5, "pt": 41.8, "zh": 9.4},
            **{"tr": 16.7, "ar": 17.1, "et": 11.1, "mn": 1.6, "nl": 31.7, "sv": 29.6},
            **{"lv": 19.5, "sl": 19.6, "ta": 0.5, "ja": 3.5, "id": 16.5, "cy": 14.0},
        },
        _by_group(36.1, 27.7, 15.1, 22.1),
    ),
    PublishedSystem(
        "w2v-BERT",
        f"{_MSLAM}, table of CoVoST-2: 0.6B, fine-tuned on speech and text",
        averages=_by_group(36.4, 25.9, 13.8, 21.0),
    ),
    PublishedSystem(
        "mSLAM 0.6B",
        f"{_MSLAM}, table of CoVoST-2: CTC, fine-tuned on speech and text",
        averages=_by_group(37.6, 27.8, 15.1, 22.4),
    ),
    PublishedSystem(
        "mSLAM 2B",
        f"{_MSLAM}, table of CoVoST-2: CTC, fine-tuned on speech and text",
        averages=_by_group(37.8, 29.6, 18.5, 24.8),
    ),
    PublishedSystem(
        "MAESTRO",
        f"{_MAESTRO}, table of CoVoST-2: 0.6B, with translations in pretraining; by resources in "
        "Radford et al. (2022), table 4",
        averages=_by_group(38.2, 31.3, 18.4, 25.2),
    ),
    PublishedSystem(
        "Whisper large-v2",
        "Radford et al. (2022), arXiv 2212.04356, table 4",
        averages=_by_group(36.2, 32.6, 25.2, 29.1),
        caveat="zero-shot; trained on translations from the web",
    ),
    PublishedSystem(
        "USM-M",
        "Zhang et al. (2023), USM, arXiv 2303.01037",
        averages={_ALL_21: 30.7},
        caveat="2B; 12 million hours of speech from the web",
    ),
    PublishedSystem(
        "SeamlessM4T-Large",
        "Barrault et al. (2023), arXiv 2308.11596, table 16",
        averages={_ALL_21: 34.1},
        caveat="2.3B; trained on translations from the web",
    ),
    PublishedSystem(
        "AudioPaLM-2 8B AST",
        "Barrault et al. (2023), arXiv 2308.11596, table 16",
        averages={_ALL_21: 37.8},
        caveat="8B, from a language model; trained on data that are not public",
    ),
)
"""BLEU on CoVoST-2 into English."""


def _speechstew(name: str, *values: float) -> PublishedSystem:
    rows = dict(zip(SPEECHSTEW_ROWS, values, strict=True))
    return PublishedSystem(name, f"{_MAESTRO}, table of SpeechStew: no language model", rows)


SPEECHSTEW: tuple[PublishedSystem, ...] = (
    _speechstew("wav2vec 2.0 XL", 1.7, 3.3, 9.6, 23.8, 5.7, 4.9, 10.8, 8.5),
    _speechstew("w2v-BERT", 1.6, 3.0, 9.1, 23.1, 5.4, 4.5, 9.0, 8.6),
    _speechstew("SLAM", 1.6, 3.1, 9.3, 23.5, 5.6, 4.6, 9.1, 8.6),
    _speechstew("TTS4Pretrain 2", 1.6, 2.8, 8.7, 21.9, 5.0, 4.5, 8.5, 8.4),
    _speechstew("MAESTRO", 1.5, 2.8, 8.5, 21.9, 4.9, 4.3, 8.0, 8.1),
)
"""Word error rates on SpeechStew's test sets, in percent."""
