"""How many clips CoVoST-2 has."""

from __future__ import annotations

from collections.abc import Mapping

INTO_ENGLISH = (
    *("fr", "de", "es", "ca", "it", "ru", "zh", "pt", "fa", "et", "mn"),
    *("nl", "tr", "ar", "sv", "lv", "sl", "ta", "ja", "id", "cy"),
)
"""The languages that are translated into English."""

FROM_ENGLISH = (
    *("de", "tr", "fa", "sv", "mn", "zh", "cy", "ca", "sl", "et", "id", "ar", "ta", "lv", "ja"),
)
"""The languages that English is translated into."""

SIZES: Mapping[str, tuple[int, int, int]] = {
    "fr_en": (207374, 14760, 14760),
    "de_en": (127834, 13511, 13511),
    "es_en": (79015, 13221, 13221),
    "ca_en": (95854, 12730, 12730),
    "it_en": (31698, 8940, 8951),
    "ru_en": (12112, 6110, 6300),
    "zh_en": (7085, 4843, 4898),
    "pt_en": (9158, 3318, 4023),
    "fa_en": (53949, 3445, 3445),
    "et_en": (1782, 1576, 1571),
    "mn_en": (2067, 1761, 1759),
    "nl_en": (7108, 1699, 1699),
    "tr_en": (3966, 1624, 1629),
    "ar_en": (2283, 1758, 1695),
    "sv_en": (2160, 1349, 1595),
    "lv_en": (2337, 1125, 1629),
    "sl_en": (1843, 509, 360),
    "ta_en": (1358, 384, 786),
    "ja_en": (1119, 635, 684),
    "id_en": (1243, 792, 844),
    "cy_en": (1241, 690, 690),
    "en_x": (289430, 15531, 15531),
}
"""Clips of train, validation and test of each direction; `en_x` is every direction from English.

Source: the splits of the data set `covost2` on the Hugging Face hub, which joins the same tables.
"""
