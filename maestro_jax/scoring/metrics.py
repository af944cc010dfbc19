"""Metrics of texts against references: the interface, the registry and those that are built in.

A metric counts something in every utterance and computes a score from the sums of the counts. From
these two functions follow the score of a test set, its confidence interval (utterances are drawn
with replacement) and the paired comparison of two models. Word and character error rates come from
jiwer, BLEU and chrF from sacreBLEU.

A metric of one's own is a subclass of `Metric` under `register_metric`, in a module that a gin file
or `--import` names; every evaluation of its kinds of task then computes it.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

import jiwer
import numpy as np
import sacrebleu.metrics.base
from sacrebleu.metrics import BLEU, CHRF

from maestro_jax.errors import UserError, near_misses
from maestro_jax.text.characters import without_invisible
from maestro_jax.text.languages import error_rate_of, writes_spaces

Kind = Literal["asr", "st", "mt"]
"""Kind of task: speech recognition, speech translation, or translation of text."""

KINDS: tuple[Kind, ...] = get_args(Kind)
CONFIDENCE = 0.95
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Keys of a row of the JSON file that are no metrics.
_RESERVED = frozenset(
    "averages complete direction empty_hypotheses empty_references error_rate expected "
    "expected_is_published heard_accuracy kind language left_out low_resource name primary_metric "
    "rows utterances vocabulary_limit".split()
)


class Metric(abc.ABC):
    """Scores the texts that a model wrote against references.

    Attributes:
        name: Key of the score in JSON files: lower-case letters, digits and underscores.
        title: Heading of its column in tables, with the unit where there is one: `WER %`.
        unit: Unit or range of the score: `percent`, `0 to 100`.
        kinds: Kinds of task whose evaluations compute it.
        higher_is_better: Whether the better of two models has the higher score.
        normalized: Whether transcripts are normalised before they are compared (lower case, no
            punctuation); False for a metric that is to see case and punctuation. Translations are
            never normalised, but for Unicode's form NFC.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    higher_is_better: ClassVar[bool] = False
    normalized: ClassVar[bool] = True

    @abc.abstractmethod
    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts what the score is computed from, utterance by utterance.

        Args:
            references: Reference texts, [utterances]; never empty as a list, but a text may be.
            hypotheses: Texts that the model wrote, [utterances], in the same order.
            language: ISO 639 code of the texts.

        Returns:
            Numbers [utterances, statistics].
        """

    @abc.abstractmethod
    def score(self, sums: np.ndarray) -> float:
        """Computes the score of a set of utterances.

        Args:
            sums: `statistics` summed over the utterances, [statistics].

        Returns:
            The score in `unit`; NaN or infinite where it is not defined.
        """

    def counts(self, sums: np.ndarray) -> dict[str, int | float]:
        """Names the numbers that the score rests on, for JSON files and tables; none by default.

        Args:
            sums: As of `score`.
        """
        return {}

    def signature(self, language: str) -> str:
        """Describes all settings of the metric; two scores compare where their signatures agree."""
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The score of a set of utterances by one metric.

    Attributes:
        value: Score in the metric's unit; NaN without utterances.
        interval: 95% bootstrap interval of `value`; None where it was not computed or has no end.
        counts: Numbers that the score rests on, as `Metric.counts` names them.
        signature: Settings of the metric, as `Metric.signature` describes them.
        draws: Scores of the bootstrap's draws, [samples], from which the interval of an average
            over several scores follows; None where there are none.
    """

    value: float
    interval: tuple[float, float] | None = None
    counts: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    signature: str = ""
    draws: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_json(self, name: str) -> dict[str, Any]:
        """Returns `name`, `name_interval` and, if there are any, `name_counts`, `name_signature`.

        A value that is undefined or infinite becomes None, which JSON can hold.
        """
        values: dict[str, Any] = {
            name: finite_or_none(self.value),
            f"{name}_interval": None if self.interval is None else list(self.interval),
        }
        if self.counts:
            counts = {key: finite_or_none(value) for key, value in self.counts.items()}
            values[f"{name}_counts"] = counts
        if self.signature:
            values[f"{name}_signature"] = self.signature
        return values


_METRICS: dict[str, Metric] = {}
M = TypeVar("M", bound=type[Metric])


def register_metric(cls: M) -> M:
    """Registers a metric, so that every evaluation of its kinds of task computes it.

    Args:
        cls: Subclass of `Metric` that takes no arguments; serves as a class decorator.

    Returns:
        The class.

    Raises:
        UserError: The class lacks an attribute, its name is taken or no name, or one of its kinds
            is unknown.
    """
    for attribute in ("name", "title", "unit", "kinds"):
        if not getattr(cls, attribute, None):
            raise UserError(f"the metric {cls.__qualname__} needs a class attribute {attribute!r}.")
    if not _NAME.fullmatch(cls.name) or cls.name in _RESERVED:
        raise UserError(
            f"the metric {cls.__qualname__} cannot be named {cls.name!r}: a name is made of "
            f"lower-case letters, digits and _, and is none of {', '.join(sorted(_RESERVED))}."
        )
    unknown = [kind for kind in cls.kinds if kind not in KINDS]
    if isinstance(cls.kinds, str) or unknown:
        raise UserError(
            f"the metric {cls.name!r} has the kinds {cls.kinds!r}; give a tuple of 'asr', 'st' "
            "and 'mt'."
        )
    known = _METRICS.get(cls.name)
    # A module may be imported again, as in a notebook: its class then replaces the earlier one.
    origin = (cls.__module__, cls.__qualname__)
    if known is not None and (type(known).__module__, type(known).__qualname__) != origin:
        raise UserError(
            f"a metric named {cls.name!r} is registered by {type(known).__module__}; "
            f"give that of {cls.__module__} another name."
        )
    _METRICS[cls.name] = cls()
    return cls


def get_metric(name: str) -> Metric:
    """Returns a registered metric.

    Raises:
        UserError: No metric has that name; with the near misses.
    """
    if name not in _METRICS:
        raise UserError(
            f"there is no metric {name!r}; registered are {', '.join(_METRICS)}."
            f"{near_misses(name, _METRICS)}"
        )
    return _METRICS[name]


def metrics_of_kind(kind: Kind) -> tuple[Metric, ...]:
    """Returns the metrics of a kind of task, in the order of their registration."""
    return tuple(metric for metric in _METRICS.values() if kind in metric.kinds)


def primary_metric(kind: Kind, language: str) -> str:
    """Returns the name of the metric that results are reported by.

    Args:
        kind: Kind of task.
        language: ISO 639 code of the texts.

    Returns:
        `bleu` for translations; for recognition `wer`, or `cer` where the language puts no spaces
        between words.
    """
    return error_rate_of(language) if kind == "asr" else "bleu"


def compute_statistics(
    metric: Metric, references: Sequence[str], hypotheses: Sequence[str], language: str
) -> np.ndarray:
    """Calls `Metric.statistics` and checks what it returns.

    Args:
        metric: The metric.
        references: Reference texts, [utterances].
        hypotheses: Texts that the model wrote, [utterances].
        language: ISO 639 code of the texts.

    Returns:
        Statistics [utterances, statistics]; [0, 0] without utterances.

    Raises:
        UserError: The metric fails, or returns another shape.
        ValueError: The two sequences differ in length.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    if not references:
        return np.zeros((0, 0))
    try:
        statistics = np.asarray(metric.statistics(references, hypotheses, language))
    except Exception as error:
        raise UserError(
            f"the metric {metric.name!r} failed: {type(error).__name__}: {error}"
        ) from error
    if statistics.ndim != 2 or len(statistics) != len(references):
        raise UserError(
            f"the metric {metric.name!r} returned statistics of shape {statistics.shape} for "
            f"{len(references)} utterances; it must be [utterances, statistics]."
        )
    # Sums of truth values would be truth values.
    return statistics.astype(np.int64) if statistics.dtype == np.bool_ else statistics


def compute_score(
    metric: Metric,
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    language: str = "",
    bootstrap_samples: int = 1000,
    seed: int | Sequence[int] = 0,
) -> Score:
    """Scores texts by one metric, as they are: normalise them first where the metric asks for it.

    Args:
        metric: The metric.
        references: Reference texts, [utterances].
        hypotheses: Texts that the model wrote, [utterances], in the same order.
        language: ISO 639 code of the texts.
        bootstrap_samples: Number of draws for the confidence interval; 0 for none.
        seed: Seed of the draws.

    Returns:
        Score, interval and counts.

    Raises:
        UserError: The metric fails, or returns another shape.
        ValueError: The two sequences differ in length.
    """
    statistics = compute_statistics(metric, references, hypotheses, language)
    if not len(statistics):
        return Score(value=math.nan, signature=metric.signature(language))
    sums = statistics.sum(axis=0)
    draws = None
    if bootstrap_samples:
        draws = bootstrap_scores(statistics, metric.score, samples=bootstrap_samples, seed=seed)
    return Score(
        value=float(metric.score(sums)),
        interval=None if draws is None else percentile_interval(draws),
        counts=metric.counts(sums),
        signature=metric.signature(language),
        draws=draws,
    )


def bootstrap_scores(
    statistics: np.ndarray,
    score: Callable[[np.ndarray], Any],
    *,
    samples: int,
    seed: int | Sequence[int],
) -> np.ndarray:
    """Scores test sets that are drawn from the utterances of one, with replacement.

    Args:
        statistics: Counts, [utterances, statistics].
        score: From summed counts [statistics] to a score, or to several.
        samples: Number of draws, each of as many utterances as there are.
        seed: Seed of the draws: the same counts and seed give the same scores.

    Returns:
        Scores, [samples] or [samples, scores].

    Source: Bisani and Ney (2004) for word error rate, Koehn (2004) for BLEU.
    """
    rng = np.random.default_rng(seed)
    count = len(statistics)
    # One draw at a time: [samples, utterances, statistics] of CoVoST-2's largest test set would
    # take a gigabyte.
    return np.asarray(
        [score(statistics[rng.integers(count, size=count)].sum(axis=0)) for _ in range(samples)]
    )


def bootstrap_interval(
    statistics: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Computes a 95% percentile interval of a corpus score by the bootstrap.

    Args:
        statistics: Counts, [utterances, statistics].
        score: From summed counts [statistics] to a score. A draw that has no finite score (no
            reference words in it) is left out.
        samples: Number of draws; 0 asks for no interval.
        seed: Seed of the draws.

    Returns:
        The lower and the upper end, or None without utterances, draws or finite scores.
    """
    statistics = np.asarray(statistics)
    if not samples or not len(statistics):
        return None
    return percentile_interval(bootstrap_scores(statistics, score, samples=samples, seed=seed))


def percentile_interval(scores: np.ndarray) -> tuple[float, float] | None:
    """Returns the 2.5th and the 97.5th percentile of the finite scores; None if there are none."""
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def finite_or_none(value: float | None) -> float | None:
    """Returns a number that JSON can hold: None for an undefined or infinite score."""
    return value if value is not None and math.isfinite(value) else None


# jiwer's default transforms strip and collapse text behind the caller's back; these only split.
_WORDS = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])
_CHARACTERS = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])


class _ErrorRate(Metric):
    """Edits that turn references into hypotheses, per 100 units of the references.

    The number of edits is the edit distance and unique; where several shortest edits exist, its
    split into substitutions, deletions and insertions is the one that jiwer picks. Runs of white
    space count as one space.
    """

    unit = "percent"
    kinds = ("asr",)
    units: ClassVar[str]

    def score(self, sums: np.ndarray) -> float:
        """Returns the rate, which may pass 100; infinite for errors over references of no unit."""
        errors, length = int(sums[:3].sum()), int(sums[3])
        if length:
            return 100.0 * errors / length
        return math.inf if errors else 0.0

    def counts(self, sums: np.ndarray) -> dict[str, int | float]:
        """Returns the length of the references and the edits by kind."""
        substitutions, deletions, insertions, length = (int(value) for value in sums)
        return {
            self.units: length,
            "substitutions": substitutions,
            "deletions": deletions,
            "insertions": insertions,
            "errors": substitutions + deletions + insertions,
        }


@register_metric
class WordErrorRate(_ErrorRate):
    """Word error rate."""

    name = "wer"
    title = "WER %"
    units = "words"

    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts substitutions, deletions, insertions and reference words, [utterances, 4]."""
        # jiwer splits at spaces alone.
        references, hypotheses = (
            [" ".join(text.split()) for text in texts] for texts in (references, hypotheses)
        )
        return _edit_counts(references, hypotheses, jiwer.process_words, _WORDS)


@register_metric
class CharacterErrorRate(_ErrorRate):
    """Character error rate. The space between two words is a character.

    In a language that puts no spaces between words it is none: corpora differ in where they have
    any.
    """

    name = "cer"
    title = "CER %"
    units = "characters"

    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts substitutions, deletions, insertions and reference characters, [utterances, 4]."""
        between_words = " " if writes_spaces(language) else ""
        references, hypotheses = (
            [between_words.join(text.split()) for text in texts]
            for texts in (references, hypotheses)
        )
        return _edit_counts(references, hypotheses, jiwer.process_characters, _CHARACTERS)


class _SacreBleuMetric(Metric):
    """A metric of sacreBLEU, on detokenised translations with case and punctuation.

    Invisible characters, such as marks of writing direction, do not count. Statistics, score and
    signature are sacreBLEU's; the draws of the bootstrap are those of all metrics here, because
    sacreBLEU's `n_bootstrap` holds all draws in memory, in float32, and gives the half width alone.
    """

    unit = "0 to 100"
    kinds = ("st", "mt")
    higher_is_better = True

    @abc.abstractmethod
    def scorer(self, language: str) -> sacrebleu.metrics.base.Metric:
        """Returns sacreBLEU's metric for translations into a language."""

    def statistics(
        self, references: Sequence[str], hypotheses: Sequence[str], language: str
    ) -> np.ndarray:
        """Counts n-grams and their matches, [utterances, statistics] as sacreBLEU orders them."""
        references, hypotheses = (
            [without_invisible(text) for text in texts] for texts in (references, hypotheses)
        )
        rows = self.scorer(language)._extract_corpus_statistics(hypotheses, [references])
        return np.asarray(rows, np.int64)

    def score(self, sums: np.ndarray) -> float:
        """Returns the corpus score."""
        # Sums of counts do not depend on the language, whose tokenizer has done its work.
        return float(self.scorer("en")._compute_score_from_stats(sums.tolist()).score)

    def signature(self, language: str) -> str:
        """Returns sacreBLEU's signature: version, tokenizer, case."""
        scorer = self.scorer(language)
        # sacreBLEU knows its signature only after it has scored something.
        scorer.corpus_score([""], [[""]])
        return str(scorer.get_signature())


@register_metric
class Bleu(_SacreBleuMetric):
    """Corpus BLEU with the settings of CoVoST-2: cased, one reference, tokenizer by language."""

    name = "bleu"
    title = "BLEU"

    def scorer(self, language: str) -> BLEU:
        """Returns sacreBLEU's BLEU with the tokenizer of the language."""
        return _bleu(bleu_tokenizer(language))

    def counts(self, sums: np.ndarray) -> dict[str, int | float]:
        """Returns the lengths in tokens and their ratio."""
        hypothesis_tokens, reference_tokens = int(sums[0]), int(sums[1])
        return {
            "reference_tokens": reference_tokens,
            "hypothesis_tokens": hypothesis_tokens,
            "length_ratio": hypothesis_tokens / reference_tokens if reference_tokens else math.nan,
        }


@register_metric
class ChrF(_SacreBleuMetric):
    """Corpus chrF2: F-score of character n-grams up to 6."""

    name = "chrf"
    title = "chrF"

    def scorer(self, language: str) -> CHRF:
        """Returns sacreBLEU's chrF2."""
        return _CHRF


_CHRF = CHRF()


@functools.cache
def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer)


def bleu_tokenizer(target_language: str) -> str:
    """Returns the sacreBLEU tokenizer: `char` where words are not spaced, else `13a`.

    Both work offline. CoVoST-2 scored Chinese and Japanese by character (Wang et al., 2020);
    `zh` and `ja-mecab` give other, lower numbers.
    """
    return "13a" if writes_spaces(target_language) else "char"


def _edit_counts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    process: Callable[..., jiwer.WordOutput | jiwer.CharacterOutput],
    transform: jiwer.Compose,
) -> np.ndarray:
    """Counts substitutions, deletions, insertions and reference length, int64 [utterances, 4]."""
    output = process(
        list(references),
        list(hypotheses),
        reference_transform=transform,
        hypothesis_transform=transform,
    )
    rows: list[list[int]] = []
    for reference, chunks in zip(output.references, output.alignments, strict=True):
        counts = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
        for chunk in chunks:
            counts[chunk.type] += max(
                chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
            )
        rows.append([counts["substitute"], counts["delete"], counts["insert"], len(reference)])
    return np.asarray(rows, np.int64)
