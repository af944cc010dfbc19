"""Speaks the texts of a stream while it is read, in other processes: training need not wait."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import numpy as np
import seqio

from maestro_jax.audio.synthesis import spoken
from maestro_jax.data.processes import Processes, num_cores
from maestro_jax.data.stream_tasks import StreamTask, has_phonemes
from maestro_jax.errors import UserError
from maestro_jax.speech_synthesis import SpeechSynthesis
from maestro_jax.text.languages import UNKNOWN_LANGUAGE, LanguageTable
from maestro_jax.text.vocabularies import Vocabulary

_MAX_WORKERS = 8


class SpokenTexts:
    """Adds `synthetic_audio` to the rows of a stream.

    Texts are spoken as the model reads them, so that labels and speech agree: decoded from tokens.

    Args:
        synthesis: Who speaks.
        tasks: The tasks of the stream.
        vocabulary: The vocabulary of the texts.
        languages: The ids of languages.

    Raises:
        UserError: The synthesiser is missing or lacks a language, or a text is in phonemes.
    """

    def __init__(
        self,
        synthesis: SpeechSynthesis,
        tasks: Sequence[seqio.Task],
        vocabulary: Vocabulary,
        languages: LanguageTable,
    ) -> None:
        for task in tasks:
            if has_phonemes(task):
                raise UserError(
                    f"the texts of task {task.name!r} are phonemes, which no synthesiser reads; "
                    "give its stream texts in letters, or no synthesis."
                )
        known = (task.languages for task in tasks if isinstance(task, StreamTask))
        synthesis.synthesizer.check(sorted({code for codes in known for code in codes}))
        self._synthesis = synthesis
        self._vocabulary = vocabulary
        self._languages = languages
        workers = synthesis.workers
        workers = min(num_cores(), _MAX_WORKERS) if workers is None else workers
        self._processes = Processes(workers) if workers else None

    def add_to(
        self, features: MutableMapping[str, np.ndarray], seeds: Sequence[tuple[int, ...]]
    ) -> int:
        """Speaks the texts of a batch.

        Args:
            features: text `[rows, tokens]`, text_length and language `[rows]`; gets
                synthetic_audio int16 `[rows, samples]` and its length int32 `[rows]`, 0 where there
                is no text or its speech is too long.
            seeds: What each row's speech is a function of, beside its text.

        Returns:
            The number of texts whose speech is too long.

        Raises:
            UserError: A text cannot be spoken.
        """
        requests = []
        for row, seed in enumerate(seeds):
            tokens = features["text"][row, : features["text_length"][row]]
            requests.append((self._synthesis, self._text(tokens), self._code(features, row), seed))
        if self._processes is None:
            speech = [spoken(*request) for request in requests]
        else:
            speech = list(self._processes.results(spoken, requests))
        longest = self._synthesis.audio_samples
        audio = features["synthetic_audio"] = np.zeros((len(seeds), longest), np.int16)
        lengths = features["synthetic_audio_length"] = np.zeros(len(seeds), np.int32)
        for row, samples in enumerate(speech):
            if len(samples) <= longest:
                audio[row, : len(samples)] = samples
                lengths[row] = len(samples)
        return sum(len(samples) > longest for samples in speech)

    def _text(self, tokens: np.ndarray) -> str:
        return self._vocabulary.decode(tokens.tolist())

    def _code(self, features: MutableMapping[str, np.ndarray], row: int) -> str:
        identity = int(features["language"][row])
        if identity == UNKNOWN_LANGUAGE and features["text_length"][row]:
            raise UserError(
                "a text to be spoken has no language; give its task a feature 'language', or the "
                "stream no synthesis."
            )
        return self._languages.code(identity)

    def close(self) -> None:
        """Ends the processes."""
        if self._processes is not None:
            self._processes.close()
