"""A trained model that turns audio into text."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maestro_jax.data.audio import to_int16
from maestro_jax.data.languages import LANGUAGES, language_id
from maestro_jax.data.streams import SAMPLE_RATE
from maestro_jax.data.vocabularies import TokenVocabulary
from maestro_jax.decoding.speech import decode_speech
from maestro_jax.errors import UserError
from maestro_jax.evaluation.segmentation import segment
from maestro_jax.training.checkpoints import find_checkpoint, restore_params
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was heard in one recording.

    Attributes:
        text: The transcript, or its translation.
        seconds: Duration of the audio.
        score: Log-probability of the paths taken, in nats, summed over segments.
        segments: Number of stretches that the recording was cut into.
        target_language: The language translated into; None for a transcript.
    """

    text: str
    seconds: float
    score: float
    segments: int
    target_language: str | None


class Transcriber:
    """Encoder, greedy decoder and vocabulary, over batches of a fixed shape.

    Args:
        run: The run that trained the model: its module, shapes and devices.
        params: The model's parameters, already placed.
        vocabulary: Tokens to text.
    """

    def __init__(self, run: TrainRun, params: Any, vocabulary: TokenVocabulary) -> None:
        self.run = run
        self.params = params
        self.vocabulary = vocabulary
        self._mesh = run.partitioning.mesh()
        audio = [stream for stream in run.streams.values() if stream.audio_samples]
        if not audio:
            raise UserError("the run has no stream with audio; its model cannot transcribe.")
        self.samples = max(stream.audio_samples for stream in audio)
        room = max(max(s.text_tokens, s.translation_tokens) for s in run.streams.values())
        # Twice the longest training text: what is longer is no sentence of this model's.
        self._decode = jax.jit(
            functools.partial(decode_speech, run.model, max_labels=2 * max(room, 16))
        )

    @classmethod
    def from_checkpoint(
        cls, directory: str | Path, run: TrainRun, *, which: str = "ema"
    ) -> Transcriber:
        """Load a model directory, or one checkpoint in it.

        Args:
            directory: A directory that `maestro train` wrote.
            run: The run that its `config.gin` describes.
            which: `ema` for the averaged weights, `params` for the last.

        Raises:
            UserError: There is no checkpoint or no vocabulary.
        """
        step_directory = find_checkpoint(directory)
        vocabulary = TokenVocabulary.load(Path(step_directory).parent.parent)
        mesh = run.partitioning.mesh()
        with run.partitioning.activate(mesh):
            boxed = run.abstract_state()
        shardings = run.partitioning.state_shardings(mesh, boxed).params
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            unbox(boxed.params),
            shardings,
        )
        if run.ema_decay is None:
            which = "params"
        params = restore_params(step_directory, which, abstract_params=abstract)
        return cls(run, params, vocabulary)

    @property
    def data_shards(self) -> int:
        """Rows of a batch are a multiple of this."""
        return self._mesh.shape["data"] * self._mesh.shape["fsdp"]

    @property
    def translates(self) -> bool:
        """Whether the model was fine-tuned to translate speech and nothing else."""
        return "st" in self.run.objective.streams and "paired" not in self.run.objective.streams

    def decode(
        self, features: Mapping[str, np.ndarray], target_language: str | None = None
    ) -> tuple[list[str], np.ndarray]:
        """Decode one batch.

        Args:
            features: `audio` int16 `[batch, samples]` and `audio_length` `[batch]`.
            target_language: ISO code to translate into; None transcribes.

        Returns:
            A string a row, and the scores `[batch]` in nats.
        """
        batch = len(features["audio"])
        inputs = {name: features[name] for name in ("audio", "audio_length")}
        if target_language is not None:
            inputs["target_language"] = np.full(batch, language_id(target_language), np.int32)
        with self.run.partitioning.activate(self._mesh):
            hypotheses = self._decode(
                self.params, **self.run.partitioning.shard_batch(self._mesh, inputs)
            )
        tokens, lengths, scores, truncated = jax.device_get(
            (hypotheses.tokens, hypotheses.lengths, hypotheses.scores, hypotheses.truncated)
        )
        if truncated.any():
            log.warning("%d of %d hypotheses ran out of room and were cut", truncated.sum(), batch)
        texts = [
            self.vocabulary.decode(row[:length].tolist())
            for row, length in zip(tokens, lengths, strict=True)
        ]
        return texts, scores

    def transcribe(
        self,
        recordings: Sequence[np.ndarray],
        *,
        target_language: str | None = None,
    ) -> list[Transcript]:
        """Transcribe, or translate, recordings of any length.

        A recording longer than what the model was trained on is cut where it is quietest.

        Args:
            recordings: Float samples at 16 kHz, each `[samples]`.
            target_language: ISO code to translate into. A model fine-tuned for translation
                translates into English if nothing is said.

        Returns:
            A transcript a recording.

        Raises:
            UserError: The language is unknown.
        """
        if target_language is None and self.translates:
            target_language = "en"
        if target_language is not None and target_language not in LANGUAGES:
            raise UserError(
                f"unknown target language {target_language!r}; write an ISO code such as 'en'."
            )
        pieces = [
            (index, to_int16(piece))
            for index, samples in enumerate(recordings)
            for piece in segment(samples, self.samples)
        ]
        data_size = self.data_shards
        texts: list[list[str]] = [[] for _ in recordings]
        scores = [0.0] * len(recordings)
        for start in range(0, len(pieces), data_size):
            chunk = pieces[start : start + data_size]
            audio = np.zeros((data_size, self.samples), np.int16)
            lengths = np.zeros(data_size, np.int32)
            for row, (_, piece) in enumerate(chunk):
                audio[row, : len(piece)] = piece
                lengths[row] = len(piece)
            found, found_scores = self.decode(
                {"audio": audio, "audio_length": lengths}, target_language
            )
            for row, (index, _) in enumerate(chunk):
                texts[index].append(found[row])
                scores[index] += float(found_scores[row])
        return [
            Transcript(
                text=" ".join(text for text in texts[index] if text),
                seconds=len(samples) / SAMPLE_RATE,
                score=scores[index],
                segments=len(texts[index]),
                target_language=target_language,
            )
            for index, samples in enumerate(recordings)
        ]
