"""CoVoST-2 as seqio tasks: `covost2_st_de_en`, `covost2_mt_de_en`, `covost2_paired_de_en`.

`st` translates the speech, `mt` its transcript, `paired` recognises it. Mixtures, each with another
one that draws small languages more often (`..._upsampled`):

- `covost2_st_x_en`, `covost2_mt_x_en`: the 21 directions into English;
- `covost2_st_en_x`, `covost2_mt_en_x`: the 15 directions from English;
- `covost2_paired`: recognition of the 22 languages.

All directions from English translate the same clips, and each keeps its own copy of them.
"""

from __future__ import annotations

from maestro_jax.data.corpora.covost2_sizes import FROM_ENGLISH, INTO_ENGLISH
from maestro_jax.tasks.corpus_tasks import add_corpus_mixtures, add_corpus_task

NAME = "covost2"
INTO = tuple(f"{language}_en" for language in INTO_ENGLISH)
FROM = tuple(f"en_{language}" for language in FROM_ENGLISH)
STREAMS = ("st", "mt", "paired")


def add_covost2() -> None:
    """Registers the tasks and mixtures."""
    for config in (*INTO, *FROM):
        language, target = config.split("_")
        for stream in STREAMS:
            add_corpus_task(
                NAME,
                config,
                stream=stream,
                language=language,
                target_language=target,
                wanted=config,
            )
    for stream in ("st", "mt"):
        for directions, configs in (("x_en", INTO), ("en_x", FROM)):
            tasks = [f"{NAME}_{stream}_{config}" for config in configs]
            add_corpus_mixtures(f"{NAME}_{stream}_{directions}", tasks)
    # English once, for its clips are the same in every direction.
    recognised = [f"{NAME}_paired_{config}" for config in (*INTO, FROM[0])]
    add_corpus_mixtures(f"{NAME}_paired", recognised)


add_covost2()
