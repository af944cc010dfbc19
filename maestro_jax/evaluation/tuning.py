"""Tunes the weights of a search on validation data.

The search for the best values is a coordinate search from coarse to fine (Hooke and Jeeves 1961):
each value in turn is moved up or down for as long as the score gets better, by a step, by two, by
four and so on, and when nothing helps any more, steps are halved. The weight of a language model
and the length bonus are moved together, too: more of one wants more of the other. A value that was
tried is never tried again, and a change must be better to be kept, so that of equally good values
the one nearest to the start wins.

The test split is never opened: values that were chosen on it would not say what to expect of
another test.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.errors import UserError, near_misses
from maestro_jax.evaluation.decoding import TestSetDecoder
from maestro_jax.evaluation.evaluate import ERROR_RATE, score
from maestro_jax.evaluation.run_evaluation import TestSet, find_step, test_sets_of_run
from maestro_jax.files import absolute_path, as_path, write_atomically
from maestro_jax.inference.search_config import SEARCH_FILE, SearchConfig, choose_decoder
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.scoring.entity_recall import EntityRecall
from maestro_jax.scoring.metrics import Metric, metrics_of_kind
from maestro_jax.training.run import TrainRun
from maestro_jax.training.saved_checkpoints import Which

log = logging.getLogger(__name__)

HALVINGS = 2
_LARGEST_BEAM = 64
_STEPS = {
    "lm_weight": 0.2,
    "ilm_weight": 0.2,
    "phrases_weight": 0.5,
    "length_bonus": 0.4,
    "blank_penalty": 0.8,
    "length_alpha": 0.4,
}
_COUPLED = ("lm_weight", "length_bonus")
_SIGNED = ("length_bonus", "blank_penalty")
TUNABLE = (*_STEPS, "beam_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One tried search.

    Attributes:
        search: The search.
        score: Its score on the validation data.
        seconds: Time that it took.
    """

    search: SearchConfig
    score: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What came out of tuning.

    Attributes:
        names: The values that were tuned.
        metric: The metric that they were tuned by.
        trials: All tried searches in order; the first is the one to start from.
        best: The best of them.
        data: Names of the test sets, with their split.
    """

    names: tuple[str, ...]
    metric: str
    trials: tuple[Trial, ...]
    best: Trial
    data: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the trials as records of a table, the best marked."""
        return [
            {
                "trial": number,
                **{name: getattr(trial.search, name) for name in self.names},
                self.metric: round(trial.score, 3),
                "seconds": round(trial.seconds, 1),
                "": "best" if trial is self.best else "",
            }
            for number, trial in enumerate(self.trials, start=1)
        ]

    def gin_text(self) -> str:
        """Returns the best search as a gin file."""
        default, search = SearchConfig(), self.best.search
        lines = [
            f"# The best of {len(self.trials)} searches that `maestro tune` tried on "
            f"{', '.join(self.data)}:",
            f"# {self.metric} {self.best.score:.3f}; {self.trials[0].score:.3f} before.",
            "from __gin__ import dynamic_registration",
            "from maestro_jax.inference import search_config",
            "",
        ]
        for field in dataclasses.fields(search):
            value = getattr(search, field.name)
            if field.name not in self.names and value == getattr(default, field.name):
                continue
            if "Path" in str(field.type):
                # From wherever it is read.
                value = str(absolute_path(value))
            lines.append(f"search_config.SearchConfig.{field.name} = {value!r}")
        return "\n".join(lines) + "\n"


def coordinate_search(
    evaluate: Callable[[SearchConfig], float],
    start: SearchConfig,
    names: Sequence[str],
    *,
    higher_is_better: bool,
    trials: int,
    seconds: float = math.inf,
    seen: Callable[[Trial], None] = lambda _: None,
) -> tuple[list[Trial], Trial]:
    """Searches for the best values; see this module.

    Args:
        evaluate: From a search to its score.
        start: Where to start.
        names: Values to change, of `TUNABLE`, in the order in which they are.
        higher_is_better: Whether larger scores are better.
        trials: The most searches to try.
        seconds: Time after which no further search is expected to end.
        seen: Called after each trial.

    Returns:
        All trials in order, and the best.

    Raises:
        UserError: The search to start from has no finite score.
    """
    sign = 1.0 if higher_is_better else -1.0
    tried: dict[SearchConfig, Trial] = {}
    ends = time.monotonic() + seconds

    def is_over() -> bool:
        # The search to start from is tried in any case.
        return len(tried) >= trials or (bool(tried) and time.monotonic() > ends)

    def is_too_long(search: SearchConfig) -> bool:
        """Returns whether a search would end too late; the first with a beam is compiled."""
        size = search.beam_size
        alike = [trial.seconds for each, trial in tried.items() if each.beam_size == size]
        every = [trial.seconds for trial in tried.values()] or [0.0]
        expected = min(alike) if len(alike) > 1 else 2 * min(every) if alike else max(every)
        return time.monotonic() + expected > ends

    def attempt(search: SearchConfig) -> Trial | None:
        """Returns the trial of a search that was not tried yet; None where there is no more."""
        if search in tried or is_over() or (tried and is_too_long(search)):
            return None
        began = time.monotonic()
        tried[search] = Trial(
            search=search, score=evaluate(search), seconds=time.monotonic() - began
        )
        seen(tried[search])
        return tried[search]

    first = attempt(start)
    if first is None or not math.isfinite(first.score):
        raise UserError(
            "the search to start from has no finite score on these data: is there any speech in "
            "them?"
        )

    best: Trial = first

    def better(search: SearchConfig | None) -> Trial | None:
        """Returns the trial of a search, if there is one and it is better than the best."""
        following = None if search is None else attempt(search)
        if following is None or not sign * following.score > sign * best.score:
            return None
        return following

    moves: list[tuple[str, ...]] = [(name,) for name in names]
    if set(_COUPLED) <= set(names):
        moves.append(_COUPLED)
    for halving in range(HALVINGS + 1):
        improves = True
        while improves and not is_over():
            before = best
            for move in moves:
                for direction in (1, -1):
                    here, scale = best, 0.5**halving
                    while following := better(_moved(best.search, move, direction, scale)):
                        # A beam doubles as it is.
                        best, scale = following, scale * (1 if "beam_size" in move else 2)
                    if best is not here:
                        break
            improves = best is not before
    return list(tried.values()), best


def _moved(
    search: SearchConfig, names: Sequence[str], direction: int, scale: float
) -> SearchConfig | None:
    """Returns a search with these values a step further; None beyond the end of a range."""
    values: dict[str, Any] = {}
    for name in names:
        if name == "beam_size":
            size = search.beam_size * 2 if direction > 0 else search.beam_size // 2
            if scale < 1 or not 1 <= size <= _LARGEST_BEAM:
                return None
            values[name] = size
            continue
        value = round(getattr(search, name) + direction * scale * _STEPS[name], 6)
        if value < 0 and name not in _SIGNED:
            return None
        values[name] = value
    return dataclasses.replace(search, **values)


def choose_names(search: SearchConfig, decoder: str, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the values that can be tuned.

    Args:
        search: The search to start from.
        decoder: `transducer`, `ctc` or `attention`.
        asked: The values that are asked for; all that have an effect by default.

    Raises:
        UserError: One of them is unknown, or has no effect.
    """
    has_lm = search.lm_text is not None or search.lm_arpa is not None
    lacking = {
        "lm_weight": None if has_lm else "a language model (--lm_text or --lm_arpa)",
        "ilm_weight": None if decoder == "transducer" else "a transducer",
        "phrases_weight": None if search.phrases is not None else "a list of --phrases",
        "blank_penalty": None if decoder != "attention" else "a decoder with a blank",
        "length_alpha": None if decoder == "attention" else "an attention decoder",
    }
    for name in asked:
        if name not in TUNABLE:
            raise UserError(
                f"there is no value {name!r} to tune; choose of {', '.join(TUNABLE)}."
                f"{near_misses(name, TUNABLE)}"
            )
        if lacking.get(name) is not None:
            raise UserError(f"--tune {name} needs {lacking[name]}")
    if asked:
        return tuple(name for name in TUNABLE if name in asked)
    # An internal language model is subtracted to make room for another one.
    without = () if has_lm else ("ilm_weight",)
    return tuple(name for name in TUNABLE if lacking.get(name) is None and name not in without)


class TuningTranscriber(Transcriber):
    """A transcriber that does not search again for what only the second pass changes.

    A language model over words ranks the hypotheses of a search, and its weight changes nothing in
    them: they are kept by the other settings of the search and by the batch.
    """

    _others: SearchConfig | None = None
    _kept: dict[Any, Hypotheses]

    def set_search(self, search: SearchConfig) -> None:
        """Searches with other settings from now on; see `Transcriber.set_search`."""
        super().set_search(search)
        self._others = dataclasses.replace(search, lm_weight=0.0)
        if not hasattr(self, "_kept"):
            self._kept = {}

    def _hypotheses(
        self, function: Callable[..., Hypotheses], inputs: Mapping[str, np.ndarray]
    ) -> Hypotheses:
        if self.rescoring is None or self._others is None:
            return super()._hypotheses(function, inputs)
        digest = hashlib.blake2b()
        for name in sorted(inputs):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(inputs[name]).tobytes())
        key = (self._others, digest.digest())
        if key not in self._kept:
            self._kept[key] = super()._hypotheses(function, inputs)
        return self._kept[key]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Held:
    """A validation set in memory."""

    test_set: TestSet
    examples: list[Any]
    lengths: np.ndarray


def tune_run(
    run: TrainRun,
    *,
    model_dir: str | Path,
    data_dir: str | Path | None = None,
    tasks: Sequence[str] = (),
    split: str = "validation",
    step: int | str | None = None,
    weights: Which = "ema",
    search: SearchConfig | None = None,
    names: Sequence[str] = (),
    metric: str | None = None,
    trials: int = 40,
    utterances: int = 2000,
    seconds: float = math.inf,
    seen: Callable[[Trial], None] = lambda _: None,
) -> Tuning:
    """Tunes the search of a model.

    Args:
        run: The run that trained the model.
        model_dir: Model directory of the run.
        data_dir: Root of the prepared data.
        tasks: Tasks or mixtures; by default the paired and ST mixtures that the objective trains.
        split: Split of the tasks; none of a test.
        step: Step of the checkpoint; the latest by default.
        weights: `ema` for the averaged weights, `params` for the last.
        search: The search to start from.
        names: Values to tune, of `TUNABLE`; all that have an effect by default.
        metric: Metric of the average over rows; by default `error_rate` of recognition, `bleu` of
            translation. Several test sets count the same.
        trials: The most searches to try.
        utterances: Number of utterances of each test set, at even distances.
        seconds: Time for all of it, after which no further search is expected to end.
        seen: Called after each trial.

    Returns:
        All trials and the best.

    Raises:
        UserError: The split is one of a test, a value or metric is unknown or has no effect, or the
            data are not there.
    """
    began = time.monotonic()
    search = search or SearchConfig()
    if "test" in split.lower():
        raise UserError(
            f"the search is never tuned on a test: give --split validation, not {split!r}"
        )
    search.check()
    names = choose_names(search, choose_decoder(run, search.decoder), names)
    test_sets = test_sets_of_run(run, tasks, split)
    kinds = {"asr" if test_set.kind == "asr" else "translation" for test_set in test_sets}
    if len(kinds) > 1:
        raise UserError("recognition and translation are tuned one at a time: name a --task")
    phrases = search.phrase_list()
    extra = (EntityRecall(phrases),) if phrases else ()
    metric, higher_is_better = _metric(metric, test_sets, extra)
    transcriber = TuningTranscriber.from_checkpoint(
        str(find_step(model_dir, step)),
        run,
        which=weights if run.ema_decay is not None else "params",
        search=search,
    )
    held = [_hold(test_set, transcriber, utterances, data_dir) for test_set in test_sets]

    def evaluate(tried: SearchConfig) -> float:
        transcriber.set_search(tried)
        return statistics.fmean(_score(one, transcriber, metric, extra) for one in held)

    tried, best = coordinate_search(
        evaluate,
        search,
        names,
        higher_is_better=higher_is_better,
        trials=trials,
        seconds=began + seconds - time.monotonic(),
        seen=seen,
    )
    return Tuning(
        names=names,
        metric=metric,
        trials=tuple(tried),
        best=best,
        data=tuple(test_set.title for test_set in test_sets),
    )


def write_search(tuning: Tuning, model_dir: epath.PathLike) -> epath.Path:
    """Writes the best search as `search.gin` into a model directory; returns its path."""
    path = as_path(model_dir) / SEARCH_FILE
    write_atomically(path, tuning.gin_text().encode())
    return path


def _metric(
    name: str | None, test_sets: Sequence[TestSet], extra: Sequence[Metric]
) -> tuple[str, bool]:
    """Returns the name of a metric, and whether higher is better."""
    kind = test_sets[0].kind
    directions = {one.name: one.higher_is_better for one in (*metrics_of_kind(kind), *extra)}
    if kind == "asr":
        directions[ERROR_RATE] = False
    name = name or (ERROR_RATE if kind == "asr" else "bleu")
    if name not in directions:
        raise UserError(
            f"there is no metric {name!r} of these tasks; choose of {', '.join(directions)}."
            f"{near_misses(name, directions)}"
        )
    return name, directions[name]


def _hold(
    test_set: TestSet, transcriber: Transcriber, utterances: int, data_dir: str | Path | None
) -> _Held:
    """Reads the utterances of a validation set once."""
    from maestro_jax.data.evaluation_examples import evaluation_examples, evaluation_lengths

    lengths = evaluation_lengths(test_set.tasks, test_set.split, data_dir)
    every = 1 if lengths is None else max(1, -(-len(lengths) // utterances))

    def read() -> Iterator[Any]:
        return evaluation_examples(
            test_set.tasks,
            test_set.split,
            data_dir,
            features=(test_set.feature,),
            languages=transcriber.languages,
            vocabulary=transcriber.vocabulary,
            shard=(0, every),
        )

    examples = list(read())
    if not examples:
        raise UserError(f"{test_set.title} has no utterances; prepare it, or name another --task")
    log.info("%s: %d utterances", test_set.title, len(examples))
    return _Held(
        test_set=test_set,
        examples=examples,
        lengths=np.array([len(one.features[test_set.feature]) for one in examples], np.int64),
    )


def _score(held: _Held, transcriber: Transcriber, metric: str, extra: Sequence[Metric]) -> float:
    decoder = TestSetDecoder(transcriber, held.test_set.kind, held.lengths)
    decoder.fit_memory()
    evaluation = score(
        list(decoder.decode(held.examples)),
        kind=held.test_set.kind,
        name=held.test_set.title,
        extra_metrics=extra,
        bootstrap_samples=0,
    )
    return evaluation.average()[0][metric]
