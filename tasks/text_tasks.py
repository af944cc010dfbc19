"""The seqio tasks of text without speech: `text_files_text_de`, `parallel_text_mt_de_en`.

`add_texts("vpt", ("de", "en"))` and `add_translations("ted", ("de_en",))` register tasks of texts
that were prepared under another name (`maestro prepare text_files --name vpt`).
"""

from __future__ import annotations

from collections.abc import Sequence

from maestro_jax.data.task_registry import TaskFamily, add_task_family
from maestro_jax.errors import UserError
from maestro_jax.scoring.published import VOXPOPULI_LANGUAGES
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task
from maestro_jax.text.languages import LANGUAGES, config_language, config_name, is_language

# The languages from which CoVoST-2 translates into English and for which mSLAM names texts of WMT
# and TED to go with it.
TRANSLATED = (
    "ar", "de", "es", "et", "fa", "fr", "id", "it", "ja", "lv", "nl", "pt", "ru", "sl", "sv", "ta",
    "tr", "zh",
)  # fmt: skip


def add_texts(corpus: str, languages: Sequence[str]) -> list[str]:
    """Registers the task `{corpus}_text_{language}` of each language.

    Args:
        corpus: Name under which the texts were prepared.
        languages: ISO 639-1 codes.

    Returns:
        The names of the tasks.
    """
    return [
        add_corpus_task(
            corpus, config_name(language), stream="text", language=language, layout="text_files"
        ).name
        for language in languages
    ]


def add_translations(corpus: str, pairs: Sequence[str]) -> list[str]:
    """Registers the task `{corpus}_mt_{pair}` of each pair of languages.

    Args:
        corpus: Name under which the texts were prepared.
        pairs: Pairs of languages; `de_en` translates from German.

    Returns:
        The names of the tasks.
    """
    names = []
    for pair in pairs:
        language, _, target = pair.partition("_")
        task = add_corpus_task(
            corpus,
            pair,
            stream="mt",
            language=language,
            target_language=target,
            requested=pair,
            layout="parallel_text",
        )
        names.append(task.name)
    return names


def _add_text(config: str) -> None:
    add_texts("text_files", [config_language(config)])


def _add_translation(pair: str) -> None:
    language, _, target = pair.partition("_")
    if not (is_language(language) and is_language(target)):
        raise UserError(f"{pair!r} is not a pair of languages such as de_en.")
    add_translations("parallel_text", [pair])


add_texts("text_files", LANGUAGES)
add_task_family(TaskFamily("text_files", ("text",), _add_text))
add_corpus_mixtures(
    "text_files_text", [f"text_files_text_{language}" for language in VOXPOPULI_LANGUAGES]
)

_FROM_ENGLISH = [f"en_{language}" for language in LANGUAGES if language != "en"]
_INTO_ENGLISH = [f"{language}_en" for language in LANGUAGES if language != "en"]
add_translations("parallel_text", (*_INTO_ENGLISH, *_FROM_ENGLISH))
add_corpus_mixtures(
    "parallel_text_mt", [f"parallel_text_mt_{language}_en" for language in TRANSLATED]
)
add_task_family(TaskFamily("parallel_text", ("mt",), _add_translation))
