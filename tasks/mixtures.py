"""Mixtures over the languages of each stream, and the place that imports every corpus's tasks.

`minivox_{config}_{stream}` draws languages in proportion to their sizes; `..._upsampled` draws
low-resource languages more often, with the temperature 3 that mSLAM and USM use for text.
"""

from __future__ import annotations

from maestro_jax.data.registration import add_language_mixture
from maestro_jax.data.streams import STREAM_FEATURES
from maestro_jax.tasks import minivox_tasks

UPSAMPLING_TEMPERATURE = 3.0

for _config in minivox_tasks.CONFIG_LANGUAGES:
    for _stream in STREAM_FEATURES:
        _name = f"minivox_{_config}_{_stream}"
        _tasks = minivox_tasks.task_names(_config, _stream)
        add_language_mixture(_name, _tasks)
        add_language_mixture(f"{_name}_upsampled", _tasks, temperature=UPSAMPLING_TEMPERATURE)
