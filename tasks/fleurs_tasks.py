"""FLEURS as seqio tasks: `fleurs_paired_{language}`, as `fleurs_paired_de`.

The mixture `fleurs_paired` draws from all languages that models can be told; `..._equal` draws them
equally often, which differs little, for all of them have about ten hours.
"""

from __future__ import annotations

import math

from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task
from maestro_jax.text.languages import LANGUAGES

# FLEURS has no Haitian Creole, Guarani or Tok Pisin, and of the Kurdish languages Sorani alone.
FLEURS_LANGUAGES = tuple(
    language for language in LANGUAGES if language not in ("ht", "gn", "tpi", "ku")
)

for _language in FLEURS_LANGUAGES:
    add_corpus_task("fleurs", _language, stream="paired", language=_language)

add_corpus_mixtures(
    "fleurs_paired",
    [f"fleurs_paired_{language}" for language in FLEURS_LANGUAGES],
    temperatures={"equal": math.inf},
)
