"""Libri-Light as seqio tasks: `libri_light_speech_{size}`, `libri_light_paired_limited_{subset}`.

The mixture `libri_light_speech` draws from all 60 thousand hours, `libri_light_speech_6k` from
`small` and `medium`. The subsets with transcripts are `10min`, `1h`, `9h` and `10h`; they have no
validation or test split of their own, for which papers take LibriSpeech's.
"""

from __future__ import annotations

from maestro_jax.data.corpora.libri_light import LIMITED, SIZES
from maestro_jax.data.corpora.limited import SUBSETS
from maestro_jax.data.registration import add_language_mixture
from maestro_jax.tasks.corpus_tasks import add_corpus_task

for _size in SIZES:
    add_corpus_task(
        "libri_light", _size, stream="speech", language="en", splits=("train",), wanted=_size
    )
add_language_mixture("libri_light_speech", [f"libri_light_speech_{_size}" for _size in SIZES])
add_language_mixture(
    "libri_light_speech_6k", ["libri_light_speech_small", "libri_light_speech_medium"]
)

for _subset, _splits in SUBSETS.items():
    add_corpus_task(
        "libri_light",
        LIMITED,
        stream="paired",
        language="en",
        splits={"train": _splits},
        name=f"libri_light_paired_{LIMITED}_{_subset}",
        wanted=LIMITED,
    )
