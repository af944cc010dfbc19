"""Published scores that tables show beside our own.

Source: MAESTRO (arXiv 2204.03409), VoxPopuli word error rates by language and CoVoST-2 averages;
the split of CoVoST-2's X->English directions by resources is Wang et al. (2020).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

VOXPOPULI_LANGUAGES = (
    *("en", "de", "fr", "es", "pl", "it", "ro", "nl", "cs", "hu", "hr", "sk", "fi", "sl"),
)


def _by_language(*values: float, average: float) -> dict[str, float]:
    return {**dict(zip(VOXPOPULI_LANGUAGES, values, strict=True)), "all": average}


# Word error rates in percent, text from VoxPopuli. "all" is the average that the paper prints: it
# was taken before rounding, and the mean of w2v-BERT's rounded rates would round to 8.9.
VOXPOPULI_WER: Mapping[str, Mapping[str, float]] = {
    "w2v-BERT": _by_language(
        *(6.7, 8.4, 8.3, 6.7, 6.2, 13.5, 9.3, 9.7, 7.4, 8.0, 9.1, 5.8, 9.2, 15.7), average=8.8
    ),
    "MAESTRO": _by_language(
        *(6.3, 7.9, 7.9, 7.2, 5.7, 13.3, 7.3, 9.2, 6.9, 7.1, 8.5, 5.2, 8.6, 14.2), average=8.2
    ),
}

# Source languages of CoVoST-2's 21 directions into English.
COVOST_GROUPS: Mapping[str, tuple[str, ...]] = {
    "high": ("fr", "de", "es", "ca"),
    "mid": ("fa", "it", "ru", "pt", "zh"),
    "low": ("et", "mn", "nl", "tr", "ar", "sv", "lv", "sl", "ta", "ja", "id", "cy"),
}

# BLEU into English, averaged over each group and over all 21 directions.
COVOST_BLEU: Mapping[str, Mapping[str, float]] = {
    "w2v-BERT": {"high": 36.4, "mid": 25.9, "low": 13.8, "all": 21.0},
    "mSLAM-CTC": {"high": 37.6, "mid": 27.8, "low": 15.1, "all": 22.4},
    "MAESTRO": {"high": 38.2, "mid": 31.3, "low": 18.4, "all": 25.2},
}


@dataclasses.dataclass(frozen=True)
class PublishedScores:
    """Scores of other systems on a test set, and the averages that they are reported in.

    Attributes:
        groups: Averages besides the one over all, and the languages of each.
        published: Systems, and their scores by language, by group and over all of them (`all`).
    """

    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def published_scores(tasks: Collection[str], split: str) -> PublishedScores:
    """Returns what was published about a test set.

    Args:
        tasks: Names of its tasks, be they of a mixture of the paper or of one's own. Known are
            CoVoST-2's translation into English, of several languages, and VoxPopuli's recognition.
        split: Split of the tasks. Numbers were published for `test` only; groups hold for all.
    """
    is_test = split == "test"

    def all_match(pattern: str) -> bool:
        return bool(tasks) and all(re.fullmatch(pattern, task) for task in tasks)

    if len(tasks) > 1 and all_match("covost2_st_[a-z]+_en"):
        return PublishedScores(COVOST_GROUPS, COVOST_BLEU if is_test else {})
    if len(tasks) > 1 and all_match("covost2_mt_[a-z]+_en"):
        # The published numbers are of speech.
        return PublishedScores(COVOST_GROUPS)
    if is_test and all_match("voxpopuli_paired_[a-z]+"):
        return PublishedScores(published=VOXPOPULI_WER)
    return PublishedScores()
