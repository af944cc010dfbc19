"""When each word of a known text is said: the best path of transducer or CTC over one recording."""

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
from maestro_jax.inference.alignment_formats import TimedText, Unit, Word
from maestro_jax.inference.transcriber import Transcriber, spoken_language
from maestro_jax.losses.ctc import ctc_alignment
from maestro_jax.losses.transducer_alignment import Alignment, transducer_alignment
from maestro_jax.text.languages import LANGUAGES, language_id
from maestro_jax.text.normalizers import normalize
from maestro_jax.vocabularies.vocabulary import UNK_ID, Vocabulary

log = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORD_BEGINS = "▁"  # SentencePiece's mark
_LABELS_STEP = 16
_NO_PATH = -1e29  # Finite lattices stand at -1e30 where there is no path.


class Aligner:
    """A trained model and its vocabulary, over recordings of any length.

    A recording is heard whole, padded to full seconds: one program is compiled for each number of
    seconds. Attention takes memory with the square of the length.

    Args:
        transcriber: The loaded model; the decoder that it writes with is the one that aligns.

    Raises:
        UserError: That decoder has no alignment.
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
    ) -> TimedText:
        """Align one recording with what is said in it.

        A token starts with the frame that emits it and lasts until the next one starts; the last
        lasts to the end of the recording. Before the first token there may be silence.

        Args:
            samples: Float samples at 16 kHz, `[samples]`.
            text: The transcript; folded, as far as `tokens_of` says, if the vocabulary lacks its
                characters.
            language: ISO code of what is spoken. Matters for folding Turkish and Catalan, and to a
                model that was built to be told the language.
            target_language: Language of the text, if it is a translation; a model fine-tuned for
                translation takes English if nothing is said.

        Returns:
            Tokens and words with times.

        Raises:
            UserError: The text is empty or has characters that the vocabulary lacks, the recording
                is too short for it or too long for the device, a language is unknown or needed and
                not given, or the model is broken.
        """
        if target_language is None and self._transcriber.translates:
            target_language = "en"
        if target_language is not None and target_language not in LANGUAGES:
            raise UserError(
                f"unknown target language {target_language!r}; write an ISO code such as 'en'."
            )
        if language:
            language_id(language)  # raises where the code is misspelt
        vocabulary = self._transcriber.vocabulary
        tokens = tokens_of(vocabulary, text, target_language or language)
        aligned = vocabulary.decode(tokens)
        if aligned != " ".join(text.split()):
            log.info("aligning the text as %r", aligned)
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
        labels = np.zeros((rows, _LABELS_STEP * math.ceil(len(tokens) / _LABELS_STEP)), np.int32)
        labels[0, : len(tokens)] = tokens
        first = np.arange(rows) == 0
        inputs: dict[str, np.ndarray] = {
            "audio": padded,
            "audio_length": np.where(first, len(audio), 0).astype(np.int32),
            "labels": labels,
            "label_lengths": np.where(first, len(tokens), 0).astype(np.int32),
        }
        if target_language is not None:
            inputs["target_language"] = np.full(rows, language_id(target_language), np.int32)
        inputs |= spoken_language(self._run.model, rows, language or None)
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
                f"has {frames}: this model writes one token a frame at most; give the text of this "
                "recording alone."
            )
        score = float(path.scores[0])
        if not score > _NO_PATH:
            raise UserError(
                f"the model gives no path through the recording (log-probability {score:g}); its "
                "weights are broken, take an earlier checkpoint."
            )
        frame_seconds = self._run.model.frame_seconds
        starts = [int(frame) * frame_seconds for frame in path.frames[0, : len(tokens)]]
        units = [
            Unit(text=piece, start=start, end=end, confidence=math.exp(min(float(logp), 0.0)))
            for piece, start, end, logp in zip(
                vocabulary.pieces(tokens),
                starts,
                [*starts[1:], seconds],
                path.label_scores[0, : len(tokens)],
                strict=True,
            )
        ]
        return TimedText(
            text=aligned,
            seconds=seconds,
            frame_seconds=frame_seconds,
            score=score,
            tokens=tuple(units),
            words=words_of(vocabulary, tokens, units),
        )

    def _frames_needed(self, tokens: Sequence[int]) -> int:
        """How many frames the lattice needs at least."""
        if self._transcriber.decoder == "ctc":
            return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))
        return len(tokens) if self._run.model.decoder.one_label_per_frame else 0

    def _run_model(
        self, inputs: dict[str, np.ndarray], seconds: float
    ) -> tuple[Alignment, np.ndarray]:
        """`align_speech` on the devices, its result on the host."""
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
    """Encode and align a batch.

    Args:
        model: A `Maestro`.
        params: Its parameters.
        audio: `[batch, samples]` int16, 16 kHz.
        audio_length: `[batch]` valid samples.
        labels: `[batch, labels]` int32.
        label_lengths: `[batch]`.
        target_language: `[batch]` language ids of a translation; None for transcripts.
        language: `[batch]` ids of the language spoken, for a model that `needs_language`.
        decoder: `transducer` or `ctc`: whose lattice.

    Returns:
        The best path, in encoder frames, and the number of frames, `[batch]`.
    """
    call = functools.partial(model.apply, {"params": params})
    features, mask = call(audio, audio_length, method="features")
    encoded = call(features, mask, language, method="encode_speech")
    context = call(encoded, mask, target_language, language, method="encode_shared")
    frame_lengths = mask.sum(axis=1).astype("int32")
    if decoder == "ctc":
        log_probs = jax.nn.log_softmax(call(context, method="ctc_logits"), axis=-1)
        return ctc_alignment(log_probs, labels, frame_lengths, label_lengths), frame_lengths
    log_blank, log_label = call(context, labels, method="lattices")
    path = transducer_alignment(
        log_blank,
        log_label,
        frame_lengths,
        label_lengths,
        one_label_per_frame=model.decoder.one_label_per_frame,
    )
    return path, frame_lengths


def tokens_of(vocabulary: Vocabulary, text: str, language: str = "") -> list[int]:
    """Token ids of a text, folded no further than the vocabulary asks for.

    A vocabulary without capitals comes from transcripts like VoxPopuli's: a text that it cannot
    write as given is folded as those are (`normalize`: lower case, no punctuation). One with
    capitals takes a text as given or not at all, for folding would spell it as no transcript does.

    Args:
        vocabulary: The model's.
        text: What is said.
        language: ISO code, for the lower case.

    Returns:
        Ids, at least one.

    Raises:
        UserError: There is no text, or the vocabulary lacks characters (or words) of it.
    """
    text = " ".join(text.split())
    if not text:
        raise UserError("the text is empty; write what is said in the recording.")
    pieces = vocabulary.pieces(range(UNK_ID + 1, vocabulary.vocab_size))
    # `<0xE9>` is a byte; its E is no letter that transcripts are written with.
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
    # A letter may be unknown by itself and part of longer pieces.
    characters = sorted(c for c in {*form} - letters if UNK_ID in vocabulary.encode(c))
    lacking = characters or [word for word in form.split() if UNK_ID in vocabulary.encode(word)]
    raise UserError(
        f"the model's vocabulary has no {', '.join(map(repr, lacking))}; "
        "spell the text as the training transcripts are spelled."
    )


def words_of(
    vocabulary: Vocabulary, ids: Sequence[int], tokens: Sequence[Unit]
) -> tuple[Word, ...]:
    """Words out of pieces.

    A word starts with its first token and lasts to the start of the next word. Where the mark of a
    word's beginning stands alone, as in vocabularies of letters, it belongs to no word: it ends the
    word before it, unless that was emitted in the same frame, and what follows it is a gap.

    Args:
        vocabulary: The model's.
        ids: `[tokens]`.
        tokens: The same tokens in time.

    Returns:
        The words in order.
    """
    groups: list[list[int]] = []
    begins = True
    for index, token in enumerate(tokens):
        begins = begins or token.text.startswith(_WORD_BEGINS)
        if token.text == _WORD_BEGINS:
            continue
        if begins:
            groups.append([])
        groups[-1].append(index)
        begins = False
    bounds = [*(token.start for token in tokens), tokens[-1].end]
    words = []
    for group, following in zip(groups, [*groups[1:], [len(tokens)]], strict=True):
        start = bounds[group[0]]
        # The bounds of marks that stand alone, if any, and of what follows.
        later = (bound for bound in bounds[group[-1] + 1 : following[0] + 1] if bound > start)
        confidence = math.prod(tokens[index].confidence for index in group)
        words.append(
            Word(
                text=vocabulary.decode([ids[index] for index in group]).strip(),
                start=start,
                end=next(later, start),
                confidence=confidence ** (1 / len(group)),
                first_token=group[0],
            )
        )
    return tuple(words)
