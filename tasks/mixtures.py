"""Importing this module registers the tasks and mixtures of every corpus here.

Mixtures over the languages of one corpus stand beside its tasks; mixtures over several corpora
belong here. All tasks of a mixture must be of one stream and share one vocabulary.
"""

from __future__ import annotations

from maestro_jax.tasks import (
    babel_tasks,
    common_voice_tasks,
    covost2_tasks,
    fleurs_tasks,
    libri_light_tasks,
    librispeech_tasks,
    minivox_tasks,
    mls_tasks,
    speechstew_tasks,
    text_tasks,
    voxpopuli_tasks,
)

__all__ = [
    "babel_tasks",
    "common_voice_tasks",
    "covost2_tasks",
    "fleurs_tasks",
    "libri_light_tasks",
    "librispeech_tasks",
    "minivox_tasks",
    "mls_tasks",
    "speechstew_tasks",
    "text_tasks",
    "voxpopuli_tasks",
]
