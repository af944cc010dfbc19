"""Counts what each language of a run writes; kept in its model directory."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.text.language_tokens import LANGUAGE_TOKENS_FILE, LanguageTokens
from maestro_jax.text.vocabularies import Vocabulary

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


def run_language_tokens(
    run: TrainRun,
    vocabulary: Vocabulary,
    model_dir: epath.PathLike,
    data_dir: str | Path | None = None,
) -> LanguageTokens | None:
    """Reads the counts of a model directory, or makes them from the run's training texts.

    The first process writes them into the model directory, if it can.

    Args:
        run: The run.
        vocabulary: The model's vocabulary.
        model_dir: The model directory.
        data_dir: Root of the prepared data.

    Returns:
        The counts; None where there are none and the data are not there or give no texts, which is
        logged.
    """
    found = LanguageTokens.load(model_dir, vocabulary)
    if found is not None:
        return found
    # Imported here: these import TensorFlow, which all other training code does without.
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.language_texts import language_texts

    began = time.monotonic()
    mixtures = [run.streams[name].mixture for name in run.used_streams]
    try:
        with data_scope(data_dir):
            found = LanguageTokens.count(language_texts(mixtures), vocabulary)
    except (UserError, OSError) as error:
        log.info(
            "the language that is heard will not be named: what each language writes is counted in "
            "the training texts of the run, which cannot be read (%s)",
            str(error).rstrip("."),
        )
        return None
    seconds = time.monotonic() - began
    log.info("counted what %d languages write in %.1f s", len(found.languages), seconds)
    if jax.process_index() == 0:
        try:
            found.save(model_dir)
        except OSError as error:
            log.warning("cannot write %s/%s: %s", model_dir, LANGUAGE_TOKENS_FILE, error)
    return found
