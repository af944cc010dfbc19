"""Published numbers that a report can set beside its own.

Source: MAESTRO (arXiv 2204.03409), VoxPopuli word error rates by language and CoVoST-2 averages;
the split of CoVoST-2's X->English directions by resources is Wang et al. (2020).
"""

from __future__ import annotations

from collections.abc import Mapping

VOXPOPULI_LANGUAGES = (
    *("en", "de", "fr", "es", "pl", "it", "ro", "nl", "cs", "hu", "hr", "sk", "fi", "sl"),
)


def _by_language(*values: float) -> dict[str, float]:
    return dict(zip(VOXPOPULI_LANGUAGES, values, strict=True))


# Word error rates in percent, text from VoxPopuli.
VOXPOPULI_WER: Mapping[str, Mapping[str, float]] = {
    "w2v-BERT": _by_language(
        *(6.7, 8.4, 8.3, 6.7, 6.2, 13.5, 9.3, 9.7, 7.4, 8.0, 9.1, 5.8, 9.2, 15.7)
    ),
    "MAESTRO": _by_language(
        *(6.3, 7.9, 7.9, 7.2, 5.7, 13.3, 7.3, 9.2, 6.9, 7.1, 8.5, 5.2, 8.6, 14.2)
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
