"""Finds the audio of an utterance again, from what its prediction says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import Prediction


def prepared_audio(
    split: str, data_dir: str | Path | None = None
) -> Callable[[Prediction], np.ndarray]:
    """Reads the audio of utterances from the prepared data, in any order.

    Args:
        split: Split that was evaluated.
        data_dir: Root of the prepared data; None for the user's default.

    Returns:
        A function from an utterance to int16 `[samples]` at 16 kHz.

    Raises:
        UserError: (from the function) The data are not there or have no random access, or the
            prediction does not say which example it is of.
    """
    opened: dict[str, Any] = {}

    def read(prediction: Prediction) -> np.ndarray:
        if not prediction.task or prediction.index < 0:
            raise UserError(
                f"the prediction of {prediction.id!r} does not say of which task it is: it is of "
                "an earlier version; evaluate again"
            )
        from maestro_jax.data.data_dir import data_scope
        from maestro_jax.data.task_readers import open_split
        from maestro_jax.data.task_registry import get_task_or_mixture

        with data_scope(data_dir):
            if prediction.task not in opened:
                task: Any = get_task_or_mixture(prediction.task)
                opened[prediction.task] = open_split(task, split)
            records = opened[prediction.task]
            if records is None:
                raise UserError(
                    f"the examples of {prediction.task!r} cannot be read in any order, so their "
                    "audio is not found again"
                )
            return np.asarray(records[prediction.index]["audio"], np.int16)

    return read
