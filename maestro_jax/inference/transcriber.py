"""Transcribes and translates audio, and translates text, with a trained model.

Each process of several decodes what it is given on its own devices: the parameters are laid out
over them alone, and no program waits for another process.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from maestro_jax.audio.reading import to_int16
from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError
from maestro_jax.inference.language_models import Rescoring, WordLm
from maestro_jax.inference.search_config import SearchConfig, choose_decoder
from maestro_jax.inference.segmentation import (
    DecodedSegment,
    Segment,
    cut_segments,
    join_segments,
)
from maestro_jax.inference.timed_words import NBestEntry, TimedToken, Transcript
from maestro_jax.text.language_tokens import LANGUAGE_TOKENS_FILE, LanguageTokens
from maestro_jax.text.languages import LanguageTable, load_languages, normalize_language
from maestro_jax.text.vocabularies import UNK_ID, Vocabulary
from maestro_jax.training.mesh_decoding import (
    jitted_decoding,
    longest_audio,
    longest_text,
    program_key,
)
from maestro_jax.training.model_vocabulary import load_model_vocabulary
from maestro_jax.training.partial_restore import restore_params
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.run import TrainRun
from maestro_jax.training.saved_checkpoints import Which, as_saved, find_checkpoint
from maestro_jax.training.state import sharded_state

log = logging.getLogger(__name__)

ROWS_PER_DEVICE = 8
"""Number of segments that a device decodes at once, if there are enough."""

_SHORTEST_ROOM = 48_000  # Samples. Below 3 seconds, padding costs less than compiling again.


@dataclasses.dataclass(frozen=True)
class _Program:
    """A compiled search.

    Attributes:
        call: From what is bound to the function, parameters and inputs to hypotheses.
        seconds: Time that compiling took.
        memory_bytes: Memory that a device needs to run it, with its arguments; 0 if not known.
    """

    call: Callable[..., Hypotheses]
    seconds: float
    memory_bytes: int

    @classmethod
    def compile(cls, function: Any, params: Any, inputs: Mapping[str, Any]) -> _Program:
        start = time.monotonic()
        bound = _bound(function)
        jitted = function.func if bound else function
        compiled = jitted.lower(*bound, params, **inputs).compile()
        analysis = compiled.memory_analysis()
        sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        return cls(
            compiled,
            time.monotonic() - start,
            sum(int(getattr(analysis, name, 0)) for name in sizes),
        )

    def __call__(self, function: Any, params: Any, **inputs: Any) -> Hypotheses:
        return self.call(*_bound(function), params, **inputs)


def _bound(function: Any) -> tuple[Any, ...]:
    """Returns the tables and numbers that are bound to a jitted function as its first argument."""
    return function.args if isinstance(function, functools.partial) else ()


@dataclasses.dataclass
class _Recording:
    """A recording of which not all segments are decoded yet.

    Attributes:
        samples: Number of samples that have been read.
        read: Whether these are all.
        pending: Number of segments that wait for their batch.
        decoded: The other segments, in order.
        error: The error that ended reading, if any.
    """

    samples: int = 0
    read: bool = False
    pending: int = 0
    decoded: list[DecodedSegment] = dataclasses.field(default_factory=list)
    error: UserError | None = None


class Transcriber:
    """Runs encoder and search of a trained model over batches of a fixed shape.

    Args:
        run: The run that trained the model: its module, shapes and devices.
        params: The model's parameters, already on the devices.
        vocabulary: Converts tokens to text.
        beam_size: Number of hypotheses that the search keeps; 1 without fusion is greedy search.
        fusion: Language model over tokens and further terms that rank hypotheses.
        decoder: See `choose_decoder`.
        length_alpha: Exponent of the attention decoder's length normalisation.
        blank_penalty: Nats that are subtracted from the logit of the blank.
        rescoring: Language model over words that ranks the hypotheses of the search.
        languages: Ids of the languages that the model knows.
        language_tokens: What each language writes; None where it is not known.
        language_mask: Whether hypotheses have only tokens that their language writes, where
            features name it.

    Raises:
        UserError: If the run's model has no speech encoder, or no such decoder.
    """

    language_tokens: LanguageTokens | None = None
    _language_mask = False
    _key: tuple = ()

    def __init__(
        self,
        run: TrainRun,
        params: Any,
        vocabulary: Vocabulary,
        *,
        beam_size: int = 1,
        fusion: Fusion | None = None,
        decoder: str | None = None,
        length_alpha: float = 0.6,
        blank_penalty: float = 0.0,
        rescoring: Rescoring | None = None,
        languages: LanguageTable | None = None,
        language_tokens: LanguageTokens | None = None,
        language_mask: bool = False,
    ) -> None:
        self.run = on_local_devices(run)
        self.decoder = choose_decoder(run, decoder)
        self.params = params
        self.vocabulary = vocabulary
        self.rescoring = rescoring
        self.languages = languages or LanguageTable()
        self.language_tokens = language_tokens
        self._language_mask = language_mask
        self._mesh = self.run.partitioning.mesh(jax.local_devices())
        if fusion is not None:
            if isinstance(fusion.lm, NgramLm):
                lm = jax.device_put(fusion.lm, replicated(self._mesh))
                fusion = dataclasses.replace(fusion, lm=lm)
            phrases = jax.device_put(fusion.phrases, replicated(self._mesh))
            fusion = dataclasses.replace(fusion, phrases=phrases)
        self._fusion = fusion
        self.samples = longest_audio(run)
        self.tokens = longest_text(run)
        self._prepare(
            beam_size=beam_size,
            fusion=fusion,
            decoder=self.decoder,
            length_alpha=length_alpha,
            blank_penalty=blank_penalty,
        )
        self._programs: dict[Any, _Program] = {}

    def _prepare(self, **options: Any) -> None:
        """Makes the functions that search, which compile when they are first used."""
        self._decode = jitted_decoding(self.run, **options)
        self._decode_text = jitted_decoding(self.run, **options, written=True)
        self._key = program_key(**options)

    def restore(self, directory: str | Path, which: Which = "ema") -> None:
        """Takes the parameters of another checkpoint of the same model.

        Args:
            directory: A checkpoint, as `find_checkpoint` takes it.
            which: `ema` for the averaged weights, `params` for the last.

        Raises:
            UserError: There is no such checkpoint, or it does not fit the model.
        """
        if self.run.ema_decay is None:
            which = "params"
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self.params,
        )
        self.params = restore_params(directory, which, abstract_params=abstract)

    def set_search(self, search: SearchConfig) -> None:
        """Searches with other weights, penalties or another beam from now on.

        The language model and the phrases stay those that the model was loaded with. A program is
        compiled anew only for another size of the beam or other kinds of terms.

        Args:
            search: The settings, whose files and decoder are ignored.
        """
        fusion = self._fusion
        lm = None if fusion is None else fusion.lm
        phrases = None if fusion is None or not search.phrases_weight else fusion.phrases
        if self.rescoring is not None:
            alpha = search.length_alpha if self.decoder == "attention" else 0.0
            self.rescoring = dataclasses.replace(
                self.rescoring, weight=search.lm_weight, length_alpha=alpha
            )
        self._prepare(
            beam_size=search.beam_size,
            fusion=search.fusion(lm, self.decoder, phrases),
            decoder=self.decoder,
            length_alpha=search.length_alpha,
            blank_penalty=search.blank_penalty,
        )

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path,
        run: TrainRun,
        *,
        which: Which = "ema",
        search: SearchConfig | None = None,
    ) -> Transcriber:
        """Loads a model directory, or one checkpoint in it.

        Args:
            directory: A directory that `maestro train` wrote.
            run: The run that its `config.gin` describes.
            which: `ema` for the averaged weights, `params` for the last.
            search: Settings of the search; None is greedy search.

        Raises:
            UserError: If there is no checkpoint, no vocabulary or that of another model, or the
                language model cannot be used.
        """
        search = search or SearchConfig()
        step_directory = find_checkpoint(directory)
        decoder = choose_decoder(run, search.decoder)
        vocabulary = load_model_vocabulary(step_directory, run.model.vocab_sizes[decoder])
        lm = search.language_model(vocabulary, run.model.vocab_sizes[decoder])
        phrases = search.phrase_bias(vocabulary, run.model.vocab_sizes[decoder])
        fusion = search.fusion(lm, decoder, phrases)
        rescoring = None
        if isinstance(lm, WordLm):
            alpha = search.length_alpha if decoder == "attention" else 0.0
            rescoring = Rescoring(lm=lm, weight=search.lm_weight, length_alpha=alpha)
        if run.ema_decay is None:
            which = "params"
        run = on_local_devices(as_saved(run, step_directory, which))
        mesh = run.partitioning.mesh(jax.local_devices())
        abstract = sharded_state(run, mesh).abstract.params
        params = restore_params(step_directory, which, abstract_params=abstract)
        return cls(
            run,
            params,
            vocabulary,
            beam_size=search.beam_size,
            fusion=fusion,
            decoder=decoder,
            length_alpha=search.length_alpha,
            blank_penalty=search.blank_penalty,
            rescoring=rescoring,
            languages=load_languages(step_directory.parent.parent),
            language_tokens=LanguageTokens.load(step_directory.parent.parent, vocabulary),
            language_mask=search.language_mask,
        )

    @property
    def data_shards(self) -> int:
        """The number of which the rows of a batch must be a multiple."""
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
        """Decodes one batch to text.

        Args:
            features: `audio` int16 `[batch, samples]` and `audio_length` `[batch]`; `language`
                `[batch]` as well, if the model needs it and rows have different languages.
            target_language: ISO code to translate into, or language ids `[batch]`; None
                transcribes.
            language: ISO code of the spoken language of all rows.

        Returns:
            The best text per row, and its log-probability under the decoder `[batch]` in nats.
        """
        return self._best(self.search(features, target_language, language))

    def search_text(
        self, features: Mapping[str, np.ndarray], target_language: str | np.ndarray = "en"
    ) -> Hypotheses:
        """Translates one batch of texts to tokens.

        Args:
            features: `text` int32 `[batch, tokens]`, `text_length` and `language` `[batch]`.
            target_language: ISO code, or language ids `[batch]`.

        Returns:
            As `search`.
        """
        return self._run(self._decode_text, self._text_inputs(features, target_language))

    def _best(self, hypotheses: Hypotheses) -> tuple[list[str], np.ndarray]:
        texts = [
            self.vocabulary.decode(row[:length].tolist())
            for row, length in zip(hypotheses.tokens[:, 0], hypotheses.lengths[:, 0], strict=True)
        ]
        return texts, np.asarray(hypotheses.scores[:, 0])

    def search(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None = None,
        language: str | None = None,
    ) -> Hypotheses:
        """Decodes one batch to tokens.

        Args:
            features: As for `decode`.
            target_language: As for `decode`.
            language: ISO code of the spoken language of all rows.

        Returns:
            The hypotheses as numpy arrays, `[batch, beam_size, ...]`, best first.

        Raises:
            UserError: If the model needs the language and it is not given.
        """
        return self._run(self._decode, self._speech_inputs(features, target_language, language))

    def compile(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None = None,
    ) -> int:
        """Compiles the search of a batch without running it.

        Args:
            features: As for `search`, or for `search_text`.
            target_language: As for these.

        Returns:
            The bytes of memory that a device needs to run it; 0 if not known.
        """
        if "text" in features:
            assert target_language is not None
            function, inputs = self._decode_text, self._text_inputs(features, target_language)
        else:
            function, inputs = self._decode, self._speech_inputs(features, target_language, None)
        with self.run.partitioning.activate(self._mesh):
            placed = self.run.partitioning.shard_batch(self._mesh, inputs)
            return self._program(function, placed).memory_bytes

    def _text_inputs(
        self, features: Mapping[str, np.ndarray], target_language: str | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the arguments of the search over texts."""
        inputs = {name: features[name] for name in ("text", "text_length", "language")}
        inputs |= self._allowed(features, target_language, None)
        return inputs | self._target(target_language, len(inputs["text"]))

    def _speech_inputs(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None,
        language: str | None,
    ) -> dict[str, np.ndarray]:
        """Returns the arguments of the search over audio."""
        inputs = {name: features[name] for name in ("audio", "audio_length")}
        rows = len(inputs["audio"])
        if language is None and self.run.model.needs_language and "language" in features:
            inputs["language"] = features["language"]
        else:
            inputs |= spoken_language(self.run.model, rows, language, self.languages)
        inputs |= self._allowed(features, target_language, language)
        return inputs | self._target(target_language, rows)

    def _target(self, target_language: str | np.ndarray | None, rows: int) -> dict[str, np.ndarray]:
        if target_language is None:
            return {}
        if isinstance(target_language, str):
            target_language = np.full(rows, self.languages.index(target_language), np.int32)
        return {"target_language": target_language}

    def hear(self, text: str) -> str:
        """Returns the code of the language that a text is written in; empty if it is not known."""
        if self.language_tokens is None:
            return ""
        return self.language_tokens.identify(self.vocabulary.encode(text))

    def check_language(self, language: str) -> None:
        """Checks that transcripts can be kept to what a language writes.

        Raises:
            UserError: If it is not known what it writes, and the model cannot be told the language
                in another way either.
        """
        if self.run.model.needs_language:
            return
        if self.language_tokens is None:
            raise UserError(
                f"it is not known what {language!r} writes: the model directory has no "
                f"{LANGUAGE_TOKENS_FILE}; run `maestro eval --model_dir` once where the training "
                "data are, which writes it, or leave --language out."
            )
        self.language_tokens.written_by(language, self.vocabulary.vocab_size)

    def _allowed(
        self,
        features: Mapping[str, np.ndarray],
        target_language: str | np.ndarray | None,
        language: str | None,
    ) -> dict[str, np.ndarray]:
        """Returns the feature `allowed`, what the language of each row writes; or nothing.

        It is the language of the text that is written: a transcript's own, if it is given or the
        search is to use that of the features, and a translation's target if the search is to.
        """
        rows = len(next(iter(features.values())))
        codes: list[str] = []
        if language is not None and target_language is None:
            codes = [language] * rows
        elif self._language_mask:
            written = features.get("language") if target_language is None else target_language
            if isinstance(written, str):
                codes = [written] * rows
            elif written is not None:
                known = range(len(self.languages))
                codes = [self.languages.code(i) if i in known else "" for i in written.tolist()]
        if not codes or self.language_tokens is None:
            return {}
        tokens, size = self.language_tokens, self.run.model.vocab_sizes[self.decoder]
        # A language that was not counted may write anything.
        masks = {
            code: tokens.written_by(code, size) if tokens.find(code) else np.ones(size, bool)
            for code in set(codes)
        }
        return {"allowed": np.stack([masks[code] for code in codes])}

    def _run(
        self, function: Callable[..., Hypotheses], inputs: Mapping[str, np.ndarray]
    ) -> Hypotheses:
        hypotheses = self._hypotheses(function, inputs)
        if self.rescoring is not None:
            hypotheses = self.rescoring(hypotheses, self._texts(hypotheses))
        cut = int(hypotheses.truncated[:, 0].sum())
        if cut:
            batch = len(hypotheses.truncated)
            log.warning("%d of %d hypotheses ran out of room and were cut", cut, batch)
        return hypotheses

    def _hypotheses(
        self, function: Callable[..., Hypotheses], inputs: Mapping[str, np.ndarray]
    ) -> Hypotheses:
        """Runs encoder and search on the devices."""
        with self.run.partitioning.activate(self._mesh):
            placed = self.run.partitioning.shard_batch(self._mesh, inputs)
            program = self._program(function, placed)
            return jax.device_get(program(function, self.params, **placed))

    def _program(self, function: Callable[..., Hypotheses], placed: dict[str, Any]) -> _Program:
        """Returns the program for inputs of some shapes, compiled when it is first used."""
        shapes = tuple(sorted((name, array.shape) for name, array in placed.items()))
        key = (function is self._decode_text, self._key, shapes)
        if key not in self._programs:
            self._programs[key] = _Program.compile(function, self.params, placed)
        return self._programs[key]

    @property
    def compile_seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        return sum(program.seconds for program in self._programs.values())

    def _texts(self, hypotheses: Hypotheses) -> list[list[str]]:
        """Decodes the text of each hypothesis, `[batch][beam]`."""
        return [
            [
                self.vocabulary.decode(tokens[:length].tolist())
                for tokens, length in zip(row, lengths, strict=True)
            ]
            for row, lengths in zip(hypotheses.tokens, hypotheses.lengths, strict=True)
        ]

    def decoded_segment(
        self, hypotheses: Hypotheses, row: int, segment: Segment, *, nbest: int | None = None
    ) -> DecodedSegment:
        """Returns the hypotheses of a row, without empty places.

        Args:
            hypotheses: Those of a batch, as of `search`.
            row: Index of the row.
            segment: What was decoded in it.
            nbest: Number of hypotheses to return; None for all.
        """
        best: list[int] = []
        alternatives: list[NBestEntry] = []
        for place in np.flatnonzero(np.isfinite(hypotheses.scores[row]))[:nbest]:
            one = jax.tree.map(lambda x, place=place: x[row, place], hypotheses)
            ids = one.tokens[: one.lengths].tolist()
            if not alternatives:
                best = ids
            # A decoder may have more tokens than the vocabulary.
            known = [i if i < self.vocabulary.vocab_size else UNK_ID for i in ids]
            seconds = one.frames[: one.lengths] * self.run.model.frame_seconds
            starts: list[float | None] = [round(float(start), 3) for start in seconds]
            if self.decoder == "attention":
                starts = [None] * len(starts)
            alternatives.append(
                NBestEntry(
                    text=self.vocabulary.decode(ids),
                    score=float(one.scores),
                    fused_score=float(one.fused_scores),
                    tokens=tuple(
                        TimedToken(text=piece, start=start, score=float(score))
                        for piece, start, score in zip(
                            self.vocabulary.pieces(known), starts, one.token_scores, strict=False
                        )
                    ),
                )
            )
        return DecodedSegment(
            start=segment.start,
            end=segment.end,
            overlap=segment.overlap,
            ids=best,
            alternatives=tuple(alternatives),
        )

    def transcribe(
        self,
        recordings: Sequence[np.ndarray],
        *,
        target_language: str | None = None,
        language: str | None = None,
    ) -> list[Transcript]:
        """Transcribes, or translates, recordings of any length that are in memory.

        Args:
            recordings: Float samples at 16 kHz, each `[samples]`.
            target_language: As for `transcribe_chunks`.
            language: As for `transcribe_chunks`.

        Returns:
            One transcript per recording.

        Raises:
            UserError: If a language is unknown, or the spoken one is needed and not given.
        """
        transcripts = []
        for transcript in self.transcribe_chunks(
            ([samples] for samples in recordings),
            target_language=target_language,
            language=language,
        ):
            if isinstance(transcript, UserError):
                raise transcript
            transcripts.append(transcript)
        return transcripts

    def transcribe_chunks(
        self,
        recordings: Iterable[Iterable[np.ndarray]],
        *,
        target_language: str | None = None,
        language: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Transcript | UserError]:
        """Transcribes, or translates, recordings while they are being read.

        Recordings are cut by `maestro_jax.inference.segmentation`. Segments of all recordings are
        decoded in batches over all devices. Memory holds the audio of one batch, and that which the
        next cut needs.

        Args:
            recordings: Each is read once, in order: chunks of float samples at 16 kHz, `[samples]`.
            target_language: ISO code to translate into; None is English for a model fine-tuned for
                translation.
            language: ISO code of the spoken language, for a model that needs it.
            progress: Called with the number of samples read since the last call. They are decoded,
                except for segments that wait for a batch.

        Yields:
            One transcript per recording, in order; or the `UserError` that reading the recording
            raised.

        Raises:
            UserError: If a language is unknown, or the spoken one is needed and not given.
        """
        if target_language is None and self.translates:
            target_language = "en"
        if target_language is not None:
            self.languages.index(target_language)  # Raises where it is unknown.
        spoken_language(self.run.model, 1, language, self.languages)  # Raises if it is missing.
        if language is not None and target_language is None:
            self.check_language(language)
        rows = self.data_shards * ROWS_PER_DEVICE
        # Segments are copied to int16, so that the chunks they are views of can be freed.
        batch: list[tuple[_Recording, Segment]] = []
        waiting: deque[_Recording] = deque()
        full = False  # Whether the program for a full batch has been compiled.
        for chunks in recordings:
            recording = _Recording()
            waiting.append(recording)
            pieces = cut_segments(_count_samples(chunks, recording, progress), self.samples)
            while (segment := _next_or_error(pieces, recording)) is not None:
                recording.pending += 1
                audio = to_int16(segment.samples)
                batch.append((recording, dataclasses.replace(segment, samples=audio)))
                if len(batch) == rows:
                    self._transcribe_batch(batch, rows, target_language, language)
                    batch, full = [], True
            recording.read = True
            while waiting and waiting[0].read and not waiting[0].pending:
                yield self._result(waiting.popleft(), target_language)
        if batch:
            # A few segments do not justify compiling the program for a full batch.
            small = not full and len(batch) <= self.data_shards
            size = self.data_shards if small else rows
            self._transcribe_batch(batch, size, target_language, language)
        for recording in waiting:
            yield self._result(recording, target_language)

    def _transcribe_batch(
        self,
        batch: Sequence[tuple[_Recording, Segment]],
        rows: int,
        target_language: str | None,
        language: str | None,
    ) -> None:
        """Decodes segments, and adds their hypotheses to their recordings."""
        audio = np.zeros((rows, self._room(batch)), np.int16)
        lengths = np.zeros(rows, np.int32)
        for row, (_, segment) in enumerate(batch):
            audio[row, : len(segment.samples)] = segment.samples
            lengths[row] = len(segment.samples)
        hypotheses = self.search(
            {"audio": audio, "audio_length": lengths}, target_language, language
        )
        for row, (recording, segment) in enumerate(batch):
            recording.decoded.append(self.decoded_segment(hypotheses, row, segment))
            recording.pending -= 1

    def _room(self, batch: Sequence[tuple[_Recording, Segment]]) -> int:
        """Returns the length to pad a batch to: one of a few, each of which is compiled for."""
        longest = max(len(segment.samples) for _, segment in batch)
        room = self.samples
        while room % 2 == 0 and room // 2 >= max(longest, _SHORTEST_ROOM):
            room //= 2
        return room

    def _result(self, recording: _Recording, target_language: str | None) -> Transcript | UserError:
        if recording.error is not None:
            return recording.error
        transcript = join_segments(
            recording.decoded,
            samples=recording.samples,
            decode=self.vocabulary.decode,
            target_language=target_language,
        )
        return dataclasses.replace(transcript, heard=self.hear(transcript.text))


def on_local_devices(run: TrainRun) -> TrainRun:
    """Returns a run whose arrays are laid out over the devices of this process alone."""
    partitioning = run.partitioning.fitted(jax.local_device_count())
    return dataclasses.replace(run, partitioning=partitioning)


def _count_samples(
    chunks: Iterable[np.ndarray], recording: _Recording, progress: Callable[[int], None] | None
) -> Iterator[np.ndarray]:
    """Yields the chunks, and counts their samples once the next one is requested."""
    for chunk in chunks:
        yield chunk
        recording.samples += len(chunk)
        if progress is not None:
            progress(len(chunk))


def _next_or_error(pieces: Iterator[Segment], recording: _Recording) -> Segment | None:
    """Returns the next segment of a recording; None after the last, or if reading fails."""
    try:
        return next(pieces, None)
    except UserError as error:
        recording.error = error
        return None


def spoken_language(
    model: nn.Module, rows: int, language: str | None, languages: LanguageTable
) -> dict[str, np.ndarray]:
    """Returns the feature `language` of a batch in one language; empty if the model needs none.

    Args:
        model: The `Maestro`.
        rows: Number of rows of the batch.
        language: Code of the spoken language.
        languages: Languages that the model knows.

    Raises:
        UserError: If it is needed and not given, or unknown.
    """
    if not model.needs_language:
        if language is not None:
            normalize_language(language)  # Raises where it is unknown.
        return {}
    if language is None:
        raise UserError(
            "this model needs the language of the speech: give --language, a code such as 'de'."
        )
    return {"language": np.full(rows, languages.index(language), np.int32)}
