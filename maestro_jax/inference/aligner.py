"""Aligns a recording with its transcript: the best path of a transducer or CTC decoder."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from maestro_jax.audio.reading import to_int16
from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.errors import UserError
from maestro_jax.inference.timed_words import AlignedToken, AlignedTranscript, aligned_words
from maestro_jax.inference.transcriber import Transcriber, spoken_language
from maestro_jax.losses.ctc import ctc_alignment
from maestro_jax.losses.transducer_alignment import Alignment, transducer_alignment
from maestro_jax.text.languages import normalize_language
from maestro_jax.text.normalizers import normalize
from maestro_jax.text.vocabularies import UNK_ID, Vocabulary

log = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LABEL_MULTIPLE = 16
_NO_PATH = -1e29  # The score without a path is about -1e30.


class Aligner:
    """Aligns recordings with a trained model and its vocabulary.

    A recording is processed as a whole, padded to full seconds: one program is compiled per number
    of seconds. The memory of attention grows with the square of the length.

    Args:
        transcriber: The loaded model; its decoder aligns.

    Raises:
        UserError: If the decoder has no alignment.
    """

    def __init__(self, transcriber: Transcriber) -> None:
        if transcriber.decoder == "attention":
            raise UserError(
                "an attention decoder has no alignment; align with a model that was trained as a "
                "transducer or by CTC."
            )
        self._transcriber = transcriber
        self._run = transcriber.run
        self._mesh = self._run.partitioning.mesh()
        self._align = jax.jit(
            functools.partial(align_speech, self._run.model, decoder=transcriber.decoder)
        )

    def align(
        self,
        samples: np.ndarray,
        text: str,
        *,
        language: str = "",
        target_language: str | None = None,
    ) -> AlignedTranscript:
        """Aligns one recording with its transcript.

        A token starts with the frame that emits it and lasts until the next one starts; the last
        one lasts to the end of the recording. There may be silence before the first token.

        Args:
            samples: Float samples at 16 kHz, `[samples]`.
            text: The transcript; normalised as `encode_transcript` does if the vocabulary lacks
                some of its characters.
            language: ISO code of the spoken language. It matters for the lower case of Turkish and
                Catalan, and to a model that needs the language.
            target_language: Language of the text, if it is a translation; None is English for a
                model fine-tuned for translation.

        Returns:
            Tokens and words with times.

        Raises:
            UserError: If the text is empty or has characters that the vocabulary lacks, the
                recording is too short for it or too long for the device, a language is unknown or
                needed and not given, or the model is broken.
        """
        if target_language is None and self._transcriber.translates:
            target_language = "en"
        languages = self._transcriber.languages
        if target_language is not None:
            languages.index(target_language)  # Raises where it is unknown, as does the next.
        if language:
            normalize_language(language)
        vocabulary = self._transcriber.vocabulary
        tokens = encode_transcript(vocabulary, text, target_language or language)
        aligned_text = vocabulary.decode(tokens)
        if aligned_text != " ".join(text.split()):
            log.info("aligning the text as %r", aligned_text)
        audio = to_int16(samples)
        seconds = len(audio) / SAMPLE_RATE
        if len(audio) > self._transcriber.samples:
            log.warning(
                "the recording has %.1f s, and the model was trained on %.1f s at most: if times "
                "look wrong, cut it where it pauses",
                seconds,
                self._transcriber.samples / SAMPLE_RATE,
            )
        rows = self._transcriber.data_shards
        padded = np.zeros((rows, SAMPLE_RATE * max(1, math.ceil(seconds))), np.int16)
        padded[0, : len(audio)] = audio
        room = _LABEL_MULTIPLE * math.ceil(len(tokens) / _LABEL_MULTIPLE)
        labels = np.zeros((rows, room), np.int32)
        labels[0, : len(tokens)] = tokens
        first = np.arange(rows) == 0
        inputs: dict[str, np.ndarray] = {
            "audio": padded,
            "audio_length": np.where(first, len(audio), 0).astype(np.int32),
            "labels": labels,
            "label_lengths": np.where(first, len(tokens), 0).astype(np.int32),
        }
        if target_language is not None:
            inputs["target_language"] = np.full(rows, languages.index(target_language), np.int32)
        inputs |= spoken_language(self._run.model, rows, language or None, languages)
        path, frame_lengths = self._run_model(inputs, seconds)
        frames = int(frame_lengths[0])
        if frames == 0:
            raise UserError(
                f"the recording of {seconds:.3f} s is too short to hold a frame; give a longer one."
            )
        needed = self._frames_needed(tokens)
        if needed > frames:
            raise UserError(
                f"the text has {len(tokens)} tokens, which need {needed} frames, and the recording "
                f"has {frames}: this model emits at most one token per frame; give the text of "
                "this recording alone."
            )
        score = float(path.scores[0])
        if not score > _NO_PATH:
            raise UserError(
                f"the model gives no path through the recording (log-probability {score:g}); its "
                "weights are broken, take an earlier checkpoint."
            )
        frame_seconds = self._run.model.frame_seconds
        starts = [int(frame) * frame_seconds for frame in path.frames[0, : len(tokens)]]
        aligned_tokens = [
            AlignedToken(
                text=piece, start=start, end=end, confidence=math.exp(min(float(score), 0.0))
            )
            for piece, start, end, score in zip(
                vocabulary.pieces(tokens),
                starts,
                [*starts[1:], seconds],
                path.label_scores[0, : len(tokens)],
                strict=True,
            )
        ]
        return AlignedTranscript(
            text=aligned_text,
            seconds=seconds,
            frame_seconds=frame_seconds,
            score=score,
            tokens=tuple(aligned_tokens),
            words=aligned_words(vocabulary, tokens, aligned_tokens),
        )

    def _frames_needed(self, tokens: Sequence[int]) -> int:
        """Computes the least number of frames that have a path."""
        if self._transcriber.decoder == "ctc":
            return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
        return len(tokens) if self._run.model.decoder.one_label_per_frame else 0

    def _run_model(
        self, inputs: dict[str, np.ndarray], seconds: float
    ) -> tuple[Alignment, np.ndarray]:
        """Runs `align_speech` on the devices and copies its result to the host."""
        with self._run.partitioning.activate(self._mesh):
            placed = self._run.partitioning.shard_batch(self._mesh, inputs)
            try:
                return jax.device_get(self._align(self._transcriber.params, **placed))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise UserError(
                    f"the recording of {seconds:.0f} s does not fit into the device's memory; "
                    "cut it, and its text with it, where it pauses."
                ) from error


def align_speech(
    model: Any,
    params: Any,
    audio: jax.Array,
    audio_length: jax.Array,
    labels: jax.Array,
    label_lengths: jax.Array,
    target_language: jax.Array | None = None,
    language: jax.Array | None = None,
    *,
    decoder: str = "transducer",
) -> tuple[Alignment, jax.Array]:
    """Encodes and aligns a batch.

    Args:
        model: A `Maestro`.
        params: The model's parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples.
        labels: `[batch, labels]` int32.
        label_lengths: `[batch]`.
        target_language: `[batch]` language ids of a translation; None for transcripts.
        language: `[batch]` ids of the spoken language, for a model that `needs_language`.
        decoder: The decoder whose lattice is used, `transducer` or `ctc`.

    Returns:
        The best path, in encoder frames, and the number of frames, `[batch]`.
    """
    bound = model.bind({"params": params})
    features, mask = bound.features(audio, audio_length)
    encoded = bound.encode_speech(features, mask, language)
    context = bound.encode_shared(encoded, mask, target_language, language)
    frame_lengths = mask.sum(axis=1).astype("int32")
    if decoder == "ctc":
        log_probs = jax.nn.log_softmax(bound.ctc_logits(context), axis=-1)
        return ctc_alignment(log_probs, labels, frame_lengths, label_lengths), frame_lengths
    log_blank, log_label = bound.joint_log_probs(context, labels)
    path = transducer_alignment(
        log_blank,
        log_label,
        frame_lengths,
        label_lengths,
        one_label_per_frame=model.decoder.one_label_per_frame,
    )
    return path, frame_lengths


def encode_transcript(vocabulary: Vocabulary, text: str, language: str = "") -> list[int]:
    """Encodes a transcript, normalised only if the vocabulary requires it.

    A vocabulary without capitals comes from transcripts like VoxPopuli's: a text that it cannot
    encode is normalised as those are (`normalize`: lower case, no punctuation). With a vocabulary
    that has capitals the text must be encodable as given, since normalisation would make it unlike
    the transcripts of the training data.

    Args:
        vocabulary: The model's vocabulary.
        text: The transcript.
        language: ISO code, for the lower case.

    Returns:
        Token ids, at least one.

    Raises:
        UserError: If there is no text, or the vocabulary lacks characters (or words) of it.
    """
    text = " ".join(text.split())
    if not text:
        raise UserError("the text is empty; write what is said in the recording.")
    pieces = vocabulary.pieces(range(UNK_ID + 1, vocabulary.vocab_size))
    # `<0xE9>` is a byte: its E does not show that transcripts have capitals.
    letters = set("".join(piece for piece in pieces if not _BYTE.fullmatch(piece)))
    forms = [text]
    if not any(letter.isupper() for letter in letters):
        forms.append(normalize(text, language))
        if not forms[-1]:
            raise UserError(f"nothing is left of the text {text!r} without punctuation; add words.")
    for form in forms:
        tokens = vocabulary.encode(form)
        if tokens and UNK_ID not in tokens:
            return tokens
    # A letter may be unknown by itself and yet be part of longer pieces.
    characters = sorted(c for c in {*form} - letters if UNK_ID in vocabulary.encode(c))
    missing = characters or [word for word in form.split() if UNK_ID in vocabulary.encode(word)]
    raise UserError(
        f"the model's vocabulary has no {', '.join(map(repr, missing))}; "
        "spell the text as the training transcripts are spelled."
    )
