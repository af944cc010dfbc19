"""Language codes, the ids by which a model knows them, and which languages write spaces.

Any language with a BCP 47 tag or an ISO 639 code can be prepared, trained on and evaluated. Data
hold codes; a run gives each code an id, and saves the table of ids with its model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Literal

import langcodes
from etils import epath
from langcodes.tag_parser import LanguageTagError

from maestro_jax.errors import UserError, near_misses
from maestro_jax.files import write_if_changed

LANGUAGES: tuple[str, ...] = (
    # MiniVox, and six languages that VoxPopuli transcribes.
    "en", "de", "fr", "es", "pl", "sl",
    # The other languages of VoxPopuli, transcribed ones first.
    "it", "nl", "ro", "hu", "cs", "hr", "sk", "fi", "et", "lt",
    "bg", "da", "el", "lv", "mt", "pt", "sv",
    # The other languages of CoVoST-2.
    "ar", "ca", "cy", "fa", "id", "ja", "mn", "ru", "ta", "tr", "zh",
    # The other languages of Babel.
    "yue", "as", "bn", "ps", "tl", "vi", "ht", "sw", "lo", "ku", "zu", "tpi", "ceb", "kk", "te",
    "gn", "ig", "am", "jv", "luo", "ka",
)  # fmt: skip
"""The languages of the shipped corpora, with which the table of a run begins. Never reorder them:
checkpoints of versions that saved no table have these ids."""

UNKNOWN_LANGUAGE = -1
"""The id of a language that is not said; encoders add no embedding for it."""

LANGUAGES_FILE = "languages.txt"
"""The file of a model directory that holds its table: one code per line, the first has id 0."""


def normalize_language(language: str) -> str:
    """Returns the canonical form of a language code.

    Args:
        language: A BCP 47 tag (`de-CH`, `sr-Latn`, `zh_CN`) or an ISO 639-1 or 639-3 code.

    Returns:
        The shortest tag of the language, with the usual capitals: `de` for `deu`, `zh-CN` for
        `zh_cn`. Codes of `LANGUAGES` keep their language.

    Raises:
        UserError: The tag is not in IANA's registry of language subtags.
    """
    try:
        return _normalized(language)
    except LanguageTagError:
        raise UserError(
            f"unknown language {language!r}; write a BCP 47 tag or an ISO 639-3 code, such as en, "
            f"quz or de-CH.{near_misses(language.lower(), LANGUAGES)}"
        ) from None


def is_language(language: str) -> bool:
    """Returns whether `normalize_language` accepts a code."""
    try:
        _normalized(language)
    except LanguageTagError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _normalized(language: str) -> str:
    if not langcodes.tag_is_valid(language):
        raise LanguageTagError(language)
    tag = langcodes.standardize_tag(language)
    # The registry of aliases would make Filipino of Tagalog, which has an id since long ago.
    given = langcodes.Language.get(language, normalize=False)
    if given.language in LANGUAGES and tag.split("-")[0] != given.language:
        return given.simplify_script().to_tag()
    return tag


def config_name(language: str) -> str:
    """Returns the form of a code that is part of the names of tasks: `de_ch` for `de-CH`."""
    return normalize_language(language).lower().replace("-", "_")


def config_language(config: str) -> str:
    """Returns the language of a config: `de-CH` for `de_ch`; see `config_name`."""
    return normalize_language(config.replace("_", "-"))


def base_language(language: str) -> str:
    """Returns the language of a tag, without script, region or variant: `sv` for `sv_SE`."""
    return language.strip().lower().replace("_", "-").split("-")[0]


ErrorRate = Literal["wer", "cer"]

UNSPACED: frozenset[str] = frozenset(
    {
        # Chinese, in codes of ISO 639-1 and 639-3: Mandarin, Cantonese, Wu, Min, Hakka and so on.
        *("zh", "zho", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "lzh"),
        *("ja", "jpn"),
        *("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "shn"),  # Thai, Lao, Khmer, Burmese.
        *("bo", "bod", "dz", "dzo"),  # Tibetan and Dzongkha, which mark syllables.
    }
)
"""Codes of languages whose words are not parted by spaces, or by a mark that is no space."""


def writes_spaces(language: str) -> bool:
    """Returns whether a language puts spaces between words.

    Args:
        language: ISO 639 code, with or without a region.
    """
    return base_language(language) not in UNSPACED


def error_rate_of(language: str) -> ErrorRate:
    """Returns the error rate by which recognition of a language is reported.

    A word error rate needs words. Where none are written, one wrong character makes a whole
    sentence wrong, so these languages are reported by character, as FLEURS (arXiv 2205.12446) and
    Whisper (arXiv 2212.04356) do.

    Args:
        language: ISO 639 code, with or without a region.

    Returns:
        `wer` or `cer`.
    """
    return "wer" if writes_spaces(language) else "cer"


@dataclasses.dataclass(frozen=True)
class LanguageTable:
    """The languages of a run; the id of a language is its place.

    Attributes:
        codes: Canonical codes, each once.
    """

    codes: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        """Checks the codes.

        Raises:
            UserError: A code is unknown, not canonical or there twice.
        """
        for code in self.codes:
            if (canonical := normalize_language(code)) != code:
                raise UserError(f"write the language {code!r} as {canonical!r}.")
        if twice := {code for code in self.codes if self.codes.count(code) > 1}:
            raise UserError(f"the languages {', '.join(sorted(twice))} are listed twice.")

    def __len__(self) -> int:
        """Returns the number of languages."""
        return len(self.codes)

    def __contains__(self, language: str) -> bool:
        """Returns whether `index` finds a language."""
        return self._find(language) is not None

    def index(self, language: str) -> int:
        """Returns the id of a language.

        Args:
            language: Its code. A tag that the table lacks has the id of its language: `sv-SE` that
                of `sv`.

        Raises:
            UserError: The code is unknown, or the table has no such language.
        """
        found = self._find(language)
        if found is None:
            normalize_language(language)
            raise UserError(
                f"the model does not know the language {language!r}; it knows "
                f"{' '.join(self.codes)}.{near_misses(language, self.codes)}"
            )
        return found

    def code(self, index: int) -> str:
        """Returns the code of an id; an empty string where it is negative, which is unknown."""
        return self.codes[index] if index >= 0 else ""

    def extended(self, languages: Iterable[str]) -> LanguageTable:
        """Returns the table with further languages at its end, where it lacks them.

        Args:
            languages: Codes in any form. A dialect gets an id of its own.

        Raises:
            UserError: A code is unknown.
        """
        codes = dict.fromkeys((*self.codes, *map(normalize_language, languages)))
        return LanguageTable(tuple(codes))

    def starts_with(self, other: LanguageTable) -> bool:
        """Returns whether all ids of another table mean the same here."""
        return self.codes[: len(other)] == other.codes

    def save(self, directory: epath.PathLike) -> None:
        """Writes `LANGUAGES_FILE` into a directory, which must exist."""
        content = "\n".join((*self.codes, "")).encode()
        write_if_changed(epath.Path(directory) / LANGUAGES_FILE, content)

    def _find(self, language: str) -> int | None:
        for code in (language, *_forms(language)):
            if (found := self._ids.get(code)) is not None:
                return found
        return None

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {code: number for number, code in enumerate(self.codes)}


def _forms(language: str) -> Sequence[str]:
    """Returns the tags that a code may be found under, the closest first."""
    if not is_language(language):
        return ()
    tag = _normalized(language)
    return tag, base_language(tag)


def load_languages(directory: epath.PathLike) -> LanguageTable:
    """Reads the table of a model.

    Args:
        directory: A model directory.

    Returns:
        The table; that of `LANGUAGES` where an earlier version saved none.

    Raises:
        UserError: The file holds something else.
    """
    path = epath.Path(directory) / LANGUAGES_FILE
    if not path.exists():
        return LanguageTable()
    try:
        return LanguageTable(tuple(path.read_text().split()))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
