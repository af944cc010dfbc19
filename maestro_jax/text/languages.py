"""Languages and their ids."""

from __future__ import annotations

from maestro_jax.errors import UserError, near_misses

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
"""ISO 639-1 codes, and ISO 639-3 ones of languages that have no other. A language's id is its place
here, so new ones are added at the end only: checkpoints hold embeddings in this order."""


def language_id(language: str) -> int:
    """The id of a language, as it stands in the `language` feature of a batch.

    Args:
        language: ISO 639-1 code; a region is ignored (`sv-SE`, `zh_CN`).

    Raises:
        UserError: The language is not one of `LANGUAGES`.
    """
    code = language.replace("_", "-").split("-")[0].lower()
    try:
        return LANGUAGES.index(code)
    except ValueError:
        raise UserError(
            f"unknown language {language!r}; known: {' '.join(LANGUAGES)}."
            f"{near_misses(code, LANGUAGES)}"
        ) from None
