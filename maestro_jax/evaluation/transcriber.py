"""A trained model that turns audio into text."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maestro_jax.data.audio import to_int16
from maestro_jax.data.languages import LANGUAGES, language_id
from maestro_jax.data.streams import SAMPLE_RATE
from maestro_jax.data.vocabularies import UNK_ID, TokenVocabulary
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError
from maestro_jax.evaluation.rescoring import Rescoring, WordLm
from maestro_jax.evaluation.search_config import SearchConfig, choose_decoder
from maestro_jax.evaluation.segmentation import segment
from maestro_jax.modules.maestro import Maestro
from maestro_jax.training.checkpoints import Which, find_checkpoint, restore_params
from maestro_jax.training.earlier_checkpoints import as_saved
from maestro_jax.training.mesh_decoding import jitted_decoding, longest_audio, longest_text
from maestro_jax.training.mesh_step import mesh_state
from maestro_jax.training.model_vocabulary import load_vocabulary
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

_MARK = "\u2581"
"""What SentencePiece writes for a blank."""

_BYTES = re.compile(r"(<0x[0-9A-F]{2}>)+")
"""What it writes for bytes, as do vocabularies of bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """A token or a word, and when it was heard.

    Attributes:
        text: The piece of the vocabulary, or the word.
        start: Seconds from the beginning of the recording to the frame that emitted it (its first
            token). A streaming model hears before it writes, so this is no boundary of a sound.
            None from an attention decoder, which has no alignment.
        score: Log-probability of the emission (of its tokens together), in nats.
    """

    text: str
    start: float | None
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """One of the hypotheses of a stretch of audio.

    Attributes:
        text: What it says.
        score: Its log-probability under the decoder, in nats.
        fused_score: What ranked it: with a language model, if there was one, and normalised by
            length, if the decoder attends.
        tokens: Its tokens; seconds count from the beginning of the stretch.
    """

    text: str
    score: float
    fused_score: float
    tokens: tuple[Timed, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was heard in one recording.

    Attributes:
        text: The transcript, or its translation.
        seconds: Duration of the audio.
        score: Log-probability under the decoder, in nats, summed over segments: of the path
            taken by the greedy search, of all paths that a beam search saw.
        segments: Number of stretches that the recording was cut into.
        target_language: The language translated into; None for a transcript.
        words: Its words, as far as blanks part them.
        tokens: Its tokens.
        alternatives: For each segment its hypotheses, best first.
    """

    text: str
    seconds: float
    score: float
    segments: int
    target_language: str | None
    words: tuple[Timed, ...] = ()
    tokens: tuple[Timed, ...] = ()
    alternatives: tuple[tuple[Alternative, ...], ...] = ()


class Transcriber:
    """Encoder, search and vocabulary, over batches of a fixed shape.

    Args:
        run: The run that trained the model: its module, shapes and devices.
        params: The model's parameters, already placed.
        vocabulary: Tokens to text.
        beam_size: Hypotheses that the search keeps; 1 without fusion is the greedy search.
        fusion: A language model over the vocabulary's tokens that helps to rank.
        decoder: See `choose_decoder`.
        length_alpha: Exponent of the attention decoder's length normalisation.
        rescoring: A language model over words that ranks what the search has found.

    Raises:
        UserError: The run's model hears nothing, or has no such decoder.
    """

    def __init__(
        self,
        run: TrainRun,
        params: Any,
        vocabulary: TokenVocabulary,
        *,
        beam_size: int = 1,
        fusion: Fusion | None = None,
        decoder: str | None = None,
        length_alpha: float = 0.6,
        rescoring: Rescoring | None = None,
    ) -> None:
        self.run = run
        self.decoder = choose_decoder(run, decoder)
        self.params = params
        self.vocabulary = vocabulary
        self.rescoring = rescoring
        self._mesh = run.partitioning.mesh()
        if fusion is not None and isinstance(fusion.lm, NgramLm):
            lm = jax.device_put(fusion.lm, replicated(self._mesh))
            fusion = dataclasses.replace(fusion, lm=lm)
        self.samples = longest_audio(run)
        self.tokens = longest_text(run)
        options: dict[str, Any] = {
            "beam_size": beam_size,
            "fusion": fusion,
            "decoder": self.decoder,
            "length_alpha": length_alpha,
        }
        self._decode = jitted_decoding(run, **options)
        self._decode_text = jitted_decoding(run, **options, written=True)

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        run: TrainRun,
        *,
        which: Which = "ema",
        search: SearchConfig | None = None,
    ) -> Transcriber:
        """Load a model directory, or one checkpoint in it.

        Args:
            directory: A directory that `maestro train` wrote.
            run: The run that its `config.gin` describes.
            which: `ema` for the averaged weights, `params` for the last.
            search: How to search; greedily if nothing is said.

        Raises:
            UserError: There is no checkpoint, no vocabulary or that of another model, or the
                language model is none.
        """
        search = search or SearchConfig()
        step_directory = find_checkpoint(directory)
        decoder = choose_decoder(run, search.decoder)
        vocabulary = load_vocabulary(step_directory, run.model.vocab_sizes[decoder])
        lm = search.language_model(vocabulary, run.model.vocab_sizes[decoder])
        fusion = search.fusion(lm, decoder)
        rescoring = None
        if isinstance(lm, WordLm):
            alpha = search.length_alpha if decoder == "attention" else 0.0
            rescoring = Rescoring(lm=lm, weight=search.lm_weight, length_alpha=alpha)
        if run.ema_decay is None:
            which = "params"
        run = as_saved(run, step_directory, which)
        abstract = mesh_state(run, run.partitioning.mesh()).abstract.params
        params = restore_params(step_directory, which, abstract_params=abstract)
        return cls(
            run,
            params,
            vocabulary,
            beam_size=search.beam_size,
            fusion=fusion,
            decoder=decoder,
            length_alpha=search.length_alpha,
            rescoring=rescoring,
        )

    @property
    def data_shards(self) -> int:
        """Rows of a batch are a multiple of this."""
        return self._mesh.shape["data"] * self._mesh.shape["fsdp"]

    @property
    def translates(self) -> bool:
        """Whether the model was fine-tuned to translate speech and nothing else."""
        return "st" in self.run.objective.streams and "paired" not in self.run.objective.streams

    def decode(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None = None,
        language: str | None = None,
    ) -> tuple[list[str], np.ndarray]:
        """Decode one batch.

        Args:
            features: `audio` int16 `[batch, samples]` and `audio_length` `[batch]`; `language`
                `[batch]` as well, if the model needs it and rows differ.
            target_language: ISO code to translate into, or language ids `[batch]` if rows differ;
                None transcribes.
            language: ISO code of what is spoken in all rows.

        Returns:
            The best string a row, and its log-probability under the decoder `[batch]` in nats.
        """
        return self._best(self.search(features, target_language, language))

    def translate(
        self, features: Mapping[str, np.ndarray], target_language: str | np.ndarray = "en"
    ) -> tuple[list[str], np.ndarray]:
        """Translate one batch of texts.

        Args:
            features: `text` int32 `[batch, tokens]`, `text_length` and `language` `[batch]`.
            target_language: ISO code, or language ids `[batch]` if rows differ.

        Returns:
            As `decode`.
        """
        inputs = {name: features[name] for name in ("text", "text_length", "language")}
        return self._best(self._run(self._decode_text, inputs, target_language))

    def _best(self, found: Hypotheses) -> tuple[list[str], np.ndarray]:
        texts = [
            self.vocabulary.decode(row[:length].tolist())
            for row, length in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True)
        ]
        return texts, np.asarray(found.scores[:, 0])

    def search(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None = None,
        language: str | None = None,
    ) -> Hypotheses:
        """Decode one batch to tokens.

        Args:
            features: As for `decode`.
            target_language: As for `decode`.
            language: ISO code of what is spoken in all rows.

        Returns:
            The hypotheses as numpy arrays, `[batch, beam_size, ...]`, best first.

        Raises:
            UserError: The model needs the language and is not told.
        """
        inputs = {name: features[name] for name in ("audio", "audio_length")}
        if language is None and self.run.model.needs_language and "language" in features:
            inputs["language"] = features["language"]
        else:
            inputs |= spoken_language(self.run.model, len(inputs["audio"]), language)
        return self._run(self._decode, inputs, target_language)

    def _run(
        self,
        function: Callable[..., Hypotheses],
        inputs: dict[str, np.ndarray],
        target_language: str | np.ndarray | None,
    ) -> Hypotheses:
        batch = len(next(iter(inputs.values())))
        if isinstance(target_language, str):
            target_language = np.full(batch, language_id(target_language), np.int32)
        if target_language is not None:
            inputs["target_language"] = target_language
        with self.run.partitioning.activate(self._mesh):
            hypotheses = function(
                self.params, **self.run.partitioning.shard_batch(self._mesh, inputs)
            )
        found = jax.device_get(hypotheses)
        if self.rescoring is not None:
            found = self.rescoring(found, self._texts(found))
        cut = int(found.truncated[:, 0].sum())
        if cut:
            log.warning("%d of %d hypotheses ran out of room and were cut", cut, batch)
        return found

    def _texts(self, found: Hypotheses) -> list[list[str]]:
        """What each hypothesis says, `[batch][beam]`."""
        return [
            [
                self.vocabulary.decode(tokens[:length].tolist())
                for tokens, length in zip(row, lengths, strict=True)
            ]
            for row, lengths in zip(found.tokens, found.lengths, strict=True)
        ]

    def _alternatives(self, found: Hypotheses, row: int) -> tuple[Alternative, ...]:
        """The hypotheses of a row, without empty places."""
        alternatives = []
        for place in np.flatnonzero(np.isfinite(found.scores[row])):
            one = jax.tree.map(lambda x, place=place: x[row, place], found)
            ids = one.tokens[: one.lengths].tolist()
            # A decoder may have more tokens than the vocabulary has pieces.
            known = [i if i < self.vocabulary.vocab_size else UNK_ID for i in ids]
            seconds = one.frames[: one.lengths] * self.run.model.frame_seconds
            starts: list[float | None] = [round(float(start), 3) for start in seconds]
            if self.decoder == "attention":
                starts = [None] * len(starts)
            alternatives.append(
                Alternative(
                    text=self.vocabulary.decode(ids),
                    score=float(one.scores),
                    fused_score=float(one.fused_scores),
                    tokens=tuple(
                        Timed(text=piece, start=start, score=float(score))
                        for piece, start, score in zip(
                            self.vocabulary.pieces(known), starts, one.token_scores, strict=False
                        )
                    ),
                )
            )
        return tuple(alternatives)

    def transcribe(
        self,
        recordings: Sequence[np.ndarray],
        *,
        target_language: str | None = None,
        language: str | None = None,
    ) -> list[Transcript]:
        """Transcribe, or translate, recordings of any length.

        A recording longer than what the model was trained on is cut where it is quietest.

        Args:
            recordings: Float samples at 16 kHz, each `[samples]`.
            target_language: ISO code to translate into. A model fine-tuned for translation
                translates into English if nothing is said.
            language: ISO code of what is spoken, for a model that was built to be told.

        Returns:
            A transcript a recording.

        Raises:
            UserError: A language is unknown, or that which is spoken is needed and not given.
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
        heard: list[list[tuple[Alternative, ...]]] = [[] for _ in recordings]
        offsets: list[list[float]] = [[] for _ in recordings]
        ends = [0.0] * len(recordings)
        for start in range(0, len(pieces), data_size):
            chunk = pieces[start : start + data_size]
            audio = np.zeros((data_size, self.samples), np.int16)
            lengths = np.zeros(data_size, np.int32)
            for row, (_, piece) in enumerate(chunk):
                audio[row, : len(piece)] = piece
                lengths[row] = len(piece)
            found = self.search(
                {"audio": audio, "audio_length": lengths}, target_language, language
            )
            for row, (index, piece) in enumerate(chunk):
                heard[index].append(self._alternatives(found, row))
                offsets[index].append(ends[index])
                ends[index] += len(piece) / SAMPLE_RATE
        transcripts = []
        for index, samples in enumerate(recordings):
            best = [alternatives[0] for alternatives in heard[index]]
            segments = [
                _later(one.tokens, offset) for one, offset in zip(best, offsets[index], strict=True)
            ]
            transcripts.append(
                Transcript(
                    text=" ".join(one.text for one in best if one.text),
                    seconds=len(samples) / SAMPLE_RATE,
                    score=sum(one.score for one in best),
                    segments=len(best),
                    target_language=target_language,
                    # Words do not reach over a cut, which falls into a pause.
                    words=tuple(word for tokens in segments for word in words_of(tokens)),
                    tokens=tuple(token for tokens in segments for token in tokens),
                    alternatives=tuple(heard[index]),
                )
            )
        return transcripts


def spoken_language(model: Maestro, rows: int, language: str | None) -> dict[str, np.ndarray]:
    """The feature `language` of a batch in one language; empty if the model need not be told.

    Args:
        model: The model.
        rows: Of the batch.
        language: ISO code of what is spoken in them.

    Raises:
        UserError: It is needed and not given, or unknown.
    """
    identity = None if language is None else language_id(language)
    if not model.needs_language:
        return {}
    if identity is None:
        raise UserError(
            "this model was built to be told the language that is spoken: give --language, "
            "an ISO code such as 'de'."
        )
    return {"language": np.full(rows, identity, np.int32)}


def words_of(tokens: Sequence[Timed]) -> list[Timed]:
    """Joins the pieces of SentencePiece to words, at the marks that stand for blanks.

    Args:
        tokens: Pieces in order.

    Returns:
        The words: each starts where its first letter was written, and has the score of all its
        pieces, a mark that stands alone included. Pieces that are bytes are put together.
    """
    words: list[Timed] = []
    score, opens = 0.0, True
    for token in tokens:
        marked = token.text.startswith(_MARK)
        letters = token.text.replace(_MARK, "")
        if marked:
            score, opens = 0.0, True
        score += token.score
        if not letters:
            continue
        if opens or not words:
            words.append(Timed(text=letters, start=token.start, score=score))
        else:
            last = words[-1]
            words[-1] = dataclasses.replace(
                last, text=last.text + letters, score=last.score + token.score
            )
        score, opens = 0.0, False
    return [dataclasses.replace(word, text=_BYTES.sub(_spelled, word.text)) for word in words]


def _spelled(found: re.Match[str]) -> str:
    """Letters for pieces such as `<0xC3><0xA9>`."""
    return bytes.fromhex(re.sub("<0x|>", "", found[0])).decode("utf-8", errors="ignore")


def _later(tokens: Sequence[Timed], seconds: float) -> tuple[Timed, ...]:
    return tuple(
        token
        if token.start is None
        else dataclasses.replace(token, start=round(token.start + seconds, 3))
        for token in tokens
    )
