"""Letters that Unicode has twice, written in the one form that texts are meant to use.

Some characters exist only because older character sets had them: Arabic letters in each of their
shapes, Latin and Chinese ones in full or half width. And one vowel of Thai and of Lao, am, has a
character of its own that also can be typed as two. Nobody sees or hears a difference, and Unicode's
composition (NFC) leaves all of it alone.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_SHAPES_AND_WIDTHS = ("<initial>", "<medial>", "<final>", "<isolated>", "<wide>", "<narrow>")

# Nikhahit (niggahita) and sara aa (vowel sign aa), with any tone mark between: what Unicode lists
# among the sequences that are not to be used, for sara am (vowel sign am).
_AM = re.compile("\u0e4d([\u0e48-\u0e4b]?)\u0e32|\u0ecd([\u0ec8-\u0ecb]?)\u0eb2")


def standard_forms(text: str) -> str:
    """Writes each letter and digit in its standard form, in Unicode's form NFC.

    Only letters and digits are replaced: signs stay as they are, and so do ligatures that stand for
    several words, superscripts and letters of other styles, which are not alike.

    Example:
        >>> standard_forms("ＡＢＣ ２０ ｶﾞ")
        'ABC 20 ガ'
    """
    text = _AM.sub(_am, text.translate(_standard_letters()))
    return unicodedata.normalize("NFC", text)


def _am(match: re.Match[str]) -> str:
    tone = match[1] or match[2] or ""
    return tone + ("\u0e33" if match[0][0] == "\u0e4d" else "\u0eb3")


@functools.cache
def _standard_letters() -> dict[int, str]:
    forms = {}
    # The blocks of Arabic presentation forms, half-width and full-width forms.
    for code in range(0xFB50, 0xFFF0):
        kind, *points = unicodedata.decomposition(chr(code)).split(" ")
        if kind in _SHAPES_AND_WIDTHS and unicodedata.category(chr(code))[0] in "LN":
            standard = "".join(chr(int(point, 16)) for point in points)
            if " " not in standard:
                forms[code] = standard
    return forms
