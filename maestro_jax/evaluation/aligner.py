"""When each word of a known text is said: the transducer's best path over one recording."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from maestro_jax.data.audio import to_int16
from maestro_jax.data.languages import LANGUAGES, language_id
from maestro_jax.data.streams import SAMPLE_RATE
from maestro_jax.data.vocabularies import UNK_ID, TokenVocabulary
from maestro_jax.errors import UserError
from maestro_jax.evaluation.alignment_formats import TimedText, Unit
from maestro_jax.evaluation.normalizers import normalize
from maestro_jax.evaluation.transcriber import Transcriber
from maestro_jax.losses.transducer_alignment import Alignment, transducer_alignment

_WORD_BEGINS = "▁"  # SentencePiece's mark
_LABELS_STEP = 16


class Aligner:
    """A trained model and its vocabulary, over recordings of any length.

    A recording is heard whole, padded to full seconds: one program is compiled for each number of
    seconds. Attention takes memory with the square of the length.

    Args:
        transcriber: The loaded model.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._run = transcriber.run
        self._mesh = self._run.partitioning.mesh()
        self._align = jax.jit(functools.partial(align_speech, self._run.model))

    def align(
        self,
        samples: np.ndarray,
        text: str,
        *,
        language: str = "",
        target_language: str | None = None,
    ) -> TimedText:
        """Align one recording with what is said in it.

        A token starts with the frame that emits it and lasts until the next one starts; the last
        lasts to the end of the recording. Before the first token there may be silence.

        Args:
            samples: Float samples at 16 kHz, `[samples]`.
            text: The transcript; folded as transcripts are (lower case, no punctuation) if the
                vocabulary lacks its characters.
            language: ISO code of the text, for folding it; matters in Turkish, Azeri and Catalan.
            target_language: Language of the text, if it is a translation; a model fine-tuned for
                translation takes English if nothing is said.

        Returns:
            Tokens and words with times.

        Raises:
            UserError: The text is empty or has characters that the vocabulary lacks, the recording
                is too short, or the language is unknown.
        """
        if target_language is None and self._transcriber.translates:
            target_language = "en"
        if target_language is not None and target_language not in LANGUAGES:
            raise UserError(
                f"unknown target language {target_language!r}; write an ISO code such as 'en'."
            )
        vocabulary = self._transcriber.vocabulary
        tokens = tokens_of(vocabulary, text, target_language or language)
        audio = to_int16(samples)
        rows = self._transcriber.data_shards
        padded = np.zeros((rows, SAMPLE_RATE * math.ceil(len(audio) / SAMPLE_RATE)), np.int16)
        padded[0, : len(audio)] = audio
        labels = np.zeros((rows, _LABELS_STEP * math.ceil(len(tokens) / _LABELS_STEP)), np.int32)
        labels[0, : len(tokens)] = tokens
        first = np.arange(rows) == 0
        inputs = {
            "audio": padded,
            "audio_length": np.where(first, len(audio), 0).astype(np.int32),
            "labels": labels,
            "label_lengths": np.where(first, len(tokens), 0).astype(np.int32),
        }
        if target_language is not None:
            inputs["target_language"] = np.full(rows, language_id(target_language), np.int32)
        with self._run.partitioning.activate(self._mesh):
            path, frame_lengths = jax.device_get(
                self._align(
                    self._transcriber.params,
                    **self._run.partitioning.shard_batch(self._mesh, inputs),
                )
            )
        frames = int(frame_lengths[0])
        if frames == 0:
            raise UserError(
                f"the recording of {len(audio) / SAMPLE_RATE:.3f} s is too short to hold a frame; "
                "give a longer one."
            )
        if self._run.model.decoder.one_label_per_frame and len(tokens) > frames:
            raise UserError(
                f"the text has {len(tokens)} tokens and the recording {frames} frames, but this "
                "model writes one token a frame at most; give the text of this recording alone."
            )
        seconds = len(audio) / SAMPLE_RATE
        starts = [
            min(float(f) * self._run.model.frame_seconds, seconds)
            for f in path.frames[0, : len(tokens)]
        ]
        units = [
            Unit(text=piece, start=start, end=end, confidence=math.exp(min(float(score), 0.0)))
            for piece, start, end, score in zip(
                vocabulary.pieces(tokens),
                starts,
                [*starts[1:], seconds],
                path.label_scores[0],
                strict=False,
            )
        ]
        return TimedText(
            seconds=seconds,
            score=float(path.scores[0]),
            tokens=tuple(units),
            words=words_of(units),
        )


def align_speech(
    model: Any,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    target_language: jax.Array | None = None,
) -> tuple[Alignment, jax.Array]:
    """Encode and align a batch.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples.
        labels: `[batch, labels]` int32.
        label_lengths: `[batch]`.
        target_language: `[batch]` language ids of a translation; None for transcripts.

    Returns:
        The best path, in encoder frames, and the number of frames, `[batch]`.
    """
    call = functools.partial(model.apply, {"params": params})
    features, mask = call(audio, audio_length, method="features")
    encoded = call(features, mask, method="encode_speech")
    context = call(encoded, mask, target_language, method="encode_shared")
    frame_lengths = mask.sum(axis=1).astype("int32")
    path = transducer_alignment(
        *call(context, labels, method="lattices"),
        frame_lengths,
        label_lengths,
        one_label_per_frame=model.decoder.one_label_per_frame,
    )
    return path, frame_lengths


def tokens_of(vocabulary: TokenVocabulary, text: str, language: str = "") -> list[int]:
    """Token ids of a text as given or, if it has unknown characters, folded as transcripts are.

    Raises:
        UserError: There is no text, or the vocabulary lacks characters of it.
    """
    if not text.strip():
        raise UserError("the text is empty; write what is said in the recording.")
    for form in (text, normalize(text, language)):
        tokens = vocabulary.encode(form)
        if tokens and UNK_ID not in tokens:
            return tokens
    lacking = sorted({c for c in form if not c.isspace() and UNK_ID in vocabulary.encode(c)})
    if not lacking:
        raise UserError(f"nothing is left of the text {text!r} without punctuation; write words.")
    raise UserError(
        f"the model's vocabulary has no {', '.join(map(repr, lacking))}; "
        "spell the text as the training transcripts are spelled."
    )


def words_of(tokens: list[Unit]) -> tuple[Unit, ...]:
    """Words out of pieces; a mark that stands alone is the gap before the next word."""
    words: list[list[Unit]] = []
    ends: list[float] = []
    for token in tokens:
        if token.text.startswith(_WORD_BEGINS) or not words:
            if words:
                ends.append(token.start)
            words.append([])
        if token.text != _WORD_BEGINS:
            words[-1].append(token)
    ends.append(tokens[-1].end)
    return tuple(
        Unit(
            text="".join(token.text.removeprefix(_WORD_BEGINS) for token in word),
            start=word[0].start,
            end=end,
            confidence=math.prod(token.confidence for token in word) ** (1 / len(word)),
        )
        for word, end in zip(words, ends, strict=True)
        if word
    )
