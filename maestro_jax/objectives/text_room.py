"""The room of a resampled text: the static number of frames that it may have.

By default that of the speech with which the text shares a run. Durations are learned from pairs, so
few texts of the same kind last longer, and streams of equal length share a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro_jax.errors import UserError

STREAMS = ("paired", "st", "speech")
"""Where the length of speech is looked up: transcribed speech first."""


def text_room(model: Any, samples: Mapping[str, int]) -> int:
    """The encoder frames of the longest speech of a run or a batch.

    Args:
        model: A `Maestro`.
        samples: The padded samples of audio, by stream.

    Returns:
        Those of the first stream of `STREAMS` that is there.

    Raises:
        UserError: There is no speech.
    """
    for name in STREAMS:
        if name in samples:
            return model.frame_count(samples[name])
    raise UserError(
        "no stream has audio from which the room of a resampled text could follow; set "
        "TEXT_FRAMES (text_frames of the objective) to a number of frames, such as 400."
    )


def audio_samples(batch: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The padded samples of audio of the streams of a batch (arrays or shapes) that have any."""
    return {name: stream["audio"].shape[1] for name, stream in batch.items() if "audio" in stream}
