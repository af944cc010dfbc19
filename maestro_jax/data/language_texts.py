"""A sample of the training texts of each language, to count what the language writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from maestro_jax.batches import Mixture
from maestro_jax.data.stream_tasks import UNDETERMINED
from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of
from maestro_jax.data.vocabulary_sampling import TextSource, plan, text_sources

SENTENCES = 20_000
"""Number of sentences of each language."""


def language_texts(
    names: Sequence[str | Mixture], sentences: int = SENTENCES
) -> Iterator[tuple[str, str]]:
    """Yields language and text of sentences at even distances through the texts of tasks.

    Texts of a task that mixes languages are left out: it is not known which is which.

    Args:
        names: Tasks and mixtures.
        sentences: The most sentences of one language.

    Raises:
        UserError: One is unknown or not prepared, or its texts cannot be read at even distances.
    """
    texts = {"text", "translation"}
    with_text = [
        name
        for name in names
        if any(texts & task.output_features.keys() for task in tasks_of(get_task_or_mixture(name)))
    ]
    by_language: dict[str, list[TextSource]] = {}
    for source in text_sources(with_text):
        if "+" not in source.language and source.language != UNDETERMINED:
            by_language.setdefault(source.language, []).append(source)
    for language in sorted(by_language):
        (sample,) = plan(by_language[language], sentences, 1.0)
        for source, take in sample.sources:
            for text in source.read(take):
                if text.strip():
                    yield language, text
