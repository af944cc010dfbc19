"""Word and character error rates, BLEU and chrF, each with the counts that it rests on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jiwer
import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from maestro_jax.scoring.bootstrap import bootstrap_interval
from maestro_jax.text.invisible_characters import without_invisible
from maestro_jax.text.writing_systems import writes_spaces

# jiwer's default transforms strip and collapse text behind the caller's back; these only split.
_WORDS = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])
_CHARACTERS = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])


def finite_or_none(value: float | None) -> float | None:
    """A number that JSON can hold: None for an undefined or infinite score."""
    return value if value is not None and math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """What it takes to turn references into hypotheses, in words or in characters.

    The total is the edit distance and unique; where several shortest edits exist, its split into
    substitutions, deletions and insertions is the one that jiwer picks.

    Attributes:
        substitutions: Units replaced by another.
        deletions: Units of the reference that the hypothesis lacks.
        insertions: Units of the hypothesis that the reference lacks.
        reference_length: Units in the references.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def errors(self) -> int:
        """The edit distance, summed over utterances."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors for 100 reference units; may pass 100.

        Over references with no unit at all the rate is 0 without errors and infinite with them.
        """
        if self.reference_length:
            return 100.0 * self.errors / self.reference_length
        return math.inf if self.errors else 0.0

    def to_json(self) -> dict[str, Any]:
        """The counts and their sum."""
        return {**dataclasses.asdict(self), "errors": self.errors}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordScores:
    """Recognition scores of a set of utterances.

    Attributes:
        words: Edits in words.
        characters: Edits in characters; the space between two words is a character, but in
            languages that write none.
        utterances: How many were scored, empty references among them.
        empty_references: Utterances whose reference has no words. They are scored: whatever the
            hypothesis says is an insertion.
        empty_hypotheses: Utterances for which nothing was recognised.
        wer_interval: 95% bootstrap interval of `wer`, in percent.
        cer_interval: 95% bootstrap interval of `cer`, in percent.
    """

    words: ErrorCounts
    characters: ErrorCounts
    utterances: int
    empty_references: int
    empty_hypotheses: int
    wer_interval: tuple[float, float] | None = None
    cer_interval: tuple[float, float] | None = None

    @property
    def wer(self) -> float:
        """Word error rate in percent; NaN without utterances."""
        return self.words.rate if self.utterances else math.nan

    @property
    def cer(self) -> float:
        """Character error rate in percent; NaN without utterances."""
        return self.characters.rate if self.utterances else math.nan

    def to_json(self) -> dict[str, Any]:
        """Rates in percent (null where undefined or infinite), intervals and counts."""
        return {
            "wer": finite_or_none(self.wer),
            "wer_interval": _listed(self.wer_interval),
            "cer": finite_or_none(self.cer),
            "cer_interval": _listed(self.cer_interval),
            "utterances": self.utterances,
            "empty_references": self.empty_references,
            "empty_hypotheses": self.empty_hypotheses,
            "words": self.words.to_json(),
            "characters": self.characters.to_json(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationScores:
    """Translation scores of a set of utterances.

    Attributes:
        bleu: Corpus BLEU, 0 to 100; NaN without utterances.
        chrf: Corpus chrF2, 0 to 100; NaN without utterances.
        bleu_signature: What sacreBLEU says it computed; two BLEUs compare only where it agrees.
        chrf_signature: The same for chrF.
        utterances: How many were scored, empty references among them.
        empty_references: Utterances with a blank reference; a hypothesis for one costs precision.
        empty_hypotheses: Utterances for which nothing was translated.
        reference_length: Tokens in the references, as BLEU's tokenizer counts them.
        hypothesis_length: Tokens in the hypotheses, counted the same way.
        bleu_interval: 95% bootstrap interval of `bleu`.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    utterances: int
    empty_references: int
    empty_hypotheses: int
    reference_length: int
    hypothesis_length: int
    bleu_interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Scores (null where undefined), interval, signatures and counts."""
        return {
            **dataclasses.asdict(self),
            "bleu": finite_or_none(self.bleu),
            "chrf": finite_or_none(self.chrf),
            "bleu_interval": _listed(self.bleu_interval),
        }


def word_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    language: str = "",
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> WordScores:
    """Word and character error rates.

    The strings are compared as they are, but for runs of white space, which count as one space:
    normalise them first.

    Args:
        references: What was said, [utterances].
        hypotheses: What was recognised, [utterances], in the same order.
        language: ISO 639 code. In one that puts no spaces between words, a space is no character:
            corpora differ in where they have any.
        bootstrap_samples: Draws for the confidence intervals; 0 for none.
        seed: Of the draws.

    Returns:
        Rates, counts and intervals.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    _check_lengths(references, hypotheses)
    references = [" ".join(text.split()) for text in references]
    hypotheses = [" ".join(text.split()) for text in hypotheses]
    words = _edit_counts(references, hypotheses, jiwer.process_words, _WORDS)
    characters = _character_counts(references, hypotheses, language)
    intervals = [
        bootstrap_interval(
            counts, lambda sums: _counts(sums).rate, samples=bootstrap_samples, seed=seed
        )
        for counts in (words, characters)
    ]
    return WordScores(
        words=_counts(words.sum(axis=0)),
        characters=_counts(characters.sum(axis=0)),
        utterances=len(references),
        empty_references=references.count(""),
        empty_hypotheses=hypotheses.count(""),
        wer_interval=intervals[0],
        cer_interval=intervals[1],
    )


def recognition_errors(
    references: Sequence[str], hypotheses: Sequence[str], language: str
) -> np.ndarray:
    """The errors of every utterance, for comparisons of two models utterance by utterance.

    Args:
        references: What was said, [utterances]; normalise them first.
        hypotheses: What was recognised, [utterances], in the same order.
        language: ISO 639 code; errors are of characters where it has no spaces between words.

    Returns:
        Errors, and words or characters of the reference, int64 [utterances, 2].

    Raises:
        ValueError: If the two sequences differ in length.
    """
    _check_lengths(references, hypotheses)
    references = [" ".join(text.split()) for text in references]
    hypotheses = [" ".join(text.split()) for text in hypotheses]
    if writes_spaces(language):
        counts = _edit_counts(references, hypotheses, jiwer.process_words, _WORDS)
    else:
        counts = _character_counts(references, hypotheses, language)
    return np.stack([counts[:, :3].sum(axis=1), counts[:, 3]], axis=1)


def bleu_tokenizer(target_language: str) -> str:
    """The sacreBLEU tokenizer of a language: ``char`` where words are not spaced, else ``13a``.

    Both work offline. CoVoST-2 scored Chinese and Japanese by character (Wang et al., 2020);
    ``zh`` and ``ja-mecab`` give other, lower numbers.
    """
    return "13a" if writes_spaces(target_language) else "char"


def translation_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    target_language: str,
    *,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> TranslationScores:
    """BLEU and chrF of detokenised translations, with case and punctuation (CoVoST-2's protocol).

    Characters that are neither seen nor heard, such as marks of writing direction, do not count.

    Args:
        references: One translation an utterance, [utterances].
        hypotheses: What was translated, [utterances], in the same order.
        target_language: ISO 639-1 code of the translations; picks the tokenizer.
        bootstrap_samples: Draws for BLEU's confidence interval; 0 for none.
        seed: Of the draws.

    Returns:
        Scores with the sacreBLEU signatures, counts and the interval.

    Raises:
        ValueError: If the two sequences differ in length.
    """
    _check_lengths(references, hypotheses)
    references = [without_invisible(text) for text in references]
    hypotheses = [without_invisible(text) for text in hypotheses]
    tokenizer = bleu_tokenizer(target_language)
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    if references:
        bleu_score = bleu.corpus_score(hypotheses, [references])
        bleu_value, chrf_value = bleu_score.score, chrf.corpus_score(hypotheses, [references]).score
        lengths = bleu_score.ref_len, bleu_score.sys_len
    else:
        # sacreBLEU refuses an empty corpus, and knows its signature only after scoring something.
        for metric in (bleu, chrf):
            metric.corpus_score([""], [[""]])
        bleu_value = chrf_value = math.nan
        lengths = 0, 0
    return TranslationScores(
        bleu=bleu_value,
        chrf=chrf_value,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        utterances=len(references),
        empty_references=sum(not text.strip() for text in references),
        empty_hypotheses=sum(not text.strip() for text in hypotheses),
        reference_length=int(lengths[0]),
        hypothesis_length=int(lengths[1]),
        bleu_interval=_bleu_interval(references, hypotheses, tokenizer, bootstrap_samples, seed),
    )


def _bleu_interval(
    references: Sequence[str],
    hypotheses: Sequence[str],
    tokenizer: str,
    samples: int,
    seed: int,
) -> tuple[float, float] | None:
    """BLEU's bootstrap interval: n-gram counts a sentence, summed over each draw."""
    if not samples or not references:
        return None
    # The effective order changes a sentence's score, not its counts, which are all that is used.
    bleu = BLEU(tokenize=tokenizer, effective_order=True)
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        score = bleu.sentence_score(hypothesis, [reference])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])

    def corpus_bleu(sums: np.ndarray) -> float:
        order = (len(sums) - 2) // 2
        values = [int(value) for value in sums]
        return BLEU.compute_bleu(
            correct=values[2 : 2 + order],
            total=values[2 + order :],
            sys_len=values[0],
            ref_len=values[1],
            smooth_method="exp",
        ).score

    return bootstrap_interval(np.asarray(rows, np.int64), corpus_bleu, samples=samples, seed=seed)


def _character_counts(references: list[str], hypotheses: list[str], language: str) -> np.ndarray:
    """`_edit_counts` in characters, without spaces where the language has none."""
    if not writes_spaces(language):
        references = [text.replace(" ", "") for text in references]
        hypotheses = [text.replace(" ", "") for text in hypotheses]
    return _edit_counts(references, hypotheses, jiwer.process_characters, _CHARACTERS)


def _edit_counts(
    references: list[str],
    hypotheses: list[str],
    process: Callable[..., jiwer.WordOutput | jiwer.CharacterOutput],
    transform: jiwer.Compose,
) -> np.ndarray:
    """Substitutions, deletions, insertions and reference length, int64 [utterances, 4]."""
    rows: list[list[int]] = []
    # jiwer makes one utterance out of none.
    if references:
        output = process(
            references,
            hypotheses,
            reference_transform=transform,
            hypothesis_transform=transform,
        )
        for reference, chunks in zip(output.references, output.alignments, strict=True):
            counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
            for chunk in chunks:
                counts[chunk.type] += max(
                    chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                )
            rows.append([counts["substitute"], counts["delete"], counts["insert"], len(reference)])
    return np.asarray(rows, np.int64).reshape(-1, 4)


def _counts(sums: np.ndarray) -> ErrorCounts:
    substitutions, deletions, insertions, length = (int(value) for value in sums)
    return ErrorCounts(
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        reference_length=length,
    )


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
