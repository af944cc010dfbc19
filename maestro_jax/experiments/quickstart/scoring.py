"""Scores a model of `maestro quickstart`, with a search that its validation set chooses."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from maestro_jax.errors import UserError
from maestro_jax.evaluation.run_evaluation import RunScores, evaluate_run, find_step
from maestro_jax.evaluation.tuning import Tuning, tune_run, write_search
from maestro_jax.experiments.quickstart.prepared import Tasks
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.reports.html_report import write_report
from maestro_jax.training.run import TrainRun

log = logging.getLogger(__name__)

_BEAM_SIZE = 4
_BEAM_SIZE_OF_CTC = 16
"""Which takes little longer with CTC, and a language model finds its sentences in it."""
_TRIALS = 40
_VALIDATION_UTTERANCES = 200
_LEAST_SECONDS = 5.0
"""Seconds that the tuning of a search gets, however little time is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestSets:
    """What is held out of a corpus.

    Attributes:
        validation: Name of the task or mixture that chooses the search; empty without any.
        test: That which is scored; the validation set if nothing else is held out.
        split: The split of `test`.
    """

    __test__ = False  # Not a class of tests, whatever pytest makes of its name.

    validation: tuple[str, ...]
    test: tuple[str, ...]
    split: str

    @classmethod
    def of(cls, tasks: Tasks, stream: str) -> TestSets:
        """Returns those of a stream: `paired` or `st`."""
        validation, test = (_names(tasks, stream, split) for split in ("validation", "test"))
        split = "test" if test else "validation"
        return cls(validation=validation, test=test or validation, split=split)


def _names(tasks: Tasks, stream: str, split: str) -> tuple[str, ...]:
    from maestro_jax.data.task_registry import get_task_or_mixture

    mixture = tasks.mixture(stream, split)
    return () if mixture is None else (get_task_or_mixture(mixture).name,)


def score_model(
    run: TrainRun,
    model_dir: Path,
    data_dir: Path,
    sets: TestSets,
    *,
    metric: str,
    lm_text: Path | None,
    is_char: bool,
    seconds: float,
) -> dict[str, RunScores]:
    """Scores greedy search and, if it is another one, the search that validation chooses.

    Args:
        run: The run that trained the model.
        model_dir: Its model directory; the search that is chosen, and a report, are written there.
        data_dir: The data root.
        sets: What to score.
        metric: `cer` or `bleu`, by which the search is chosen.
        lm_text: Texts of an n-gram language model for the beam; None for none.
        is_char: Whether tokens are characters.
        seconds: Time for all of it.

    Returns:
        Scores by the name of their search; empty if nothing is held out.
    """
    ends = time.monotonic() + seconds
    if not sets.test:
        print("no recordings are held out, so nothing is scored")
        write_report(model_dir)
        return {}
    evaluate = functools.partial(
        evaluate_run,
        run,
        model_dir=model_dir,
        data_dir=data_dir,
        tasks=sets.test,
        split=sets.split,
        step=best_step(model_dir),
    )
    began = time.monotonic()
    scores = {"Greedy search": evaluate()}
    greedy = time.monotonic() - began
    beam, search = _first_beam(metric, lm_text, is_char), None
    if sets.validation:
        # The beam on the test set takes a few times as long as greedy search, to compile above all,
        # and the widest the more so.
        left = ends - time.monotonic() - max(5 * greedy, 0.3 * seconds)
        search = _choose_search(run, model_dir, data_dir, sets.validation, beam, metric, left)
    elif lm_text is not None:
        search = beam
    if search is not None and search != SearchConfig(decoder=run.objective.decoders[0]):
        scores[_title(search)] = evaluate(search=search)
    write_report(model_dir)
    return scores


def best_step(model_dir: Path) -> str | None:
    """Returns `best` if validation has chosen a checkpoint; None for the last one."""
    try:
        find_step(model_dir, "best")
    except UserError:
        return None
    return "best"


def _first_beam(metric: str, lm_text: Path | None, is_char: bool) -> SearchConfig:
    """Returns the beam search to start from, with an n-gram language model if there are texts."""
    if lm_text is None:
        return SearchConfig(beam_size=_BEAM_SIZE)
    return SearchConfig(
        beam_size=_BEAM_SIZE,
        lm_text=lm_text,
        lm_order=8 if is_char else 5,
        lm_weight=0.5,
        length_bonus=0.4,
    )


def _choose_search(
    run: TrainRun,
    model_dir: Path,
    data_dir: Path,
    tasks: Sequence[str],
    beam: SearchConfig,
    metric: str,
    seconds: float,
) -> SearchConfig:
    """Chooses a search on the validation set and writes it: greedy, or a beam that is tuned.

    Each is tried with each decoder that was trained, as far as the time allows.
    """
    ends = time.monotonic() + seconds
    decoders = run.objective.decoders
    starts = [(SearchConfig(decoder=decoder), 1) for decoder in decoders]
    for decoder in decoders:
        size = _BEAM_SIZE_OF_CTC if decoder == "ctc" else beam.beam_size
        starts.append((dataclasses.replace(beam, decoder=decoder, beam_size=size), _TRIALS))
    # A beam with a language model of the few sentences that there are finds them where it is wide.
    names = ("lm_weight",) * (beam.lm_text is not None) + ("length_bonus", "beam_size")
    tunings: list[Tuning] = []
    for position, (start, trials) in enumerate(starts):
        left = ends - time.monotonic()
        if tunings and left < 0.1 * seconds:
            log.warning("no time is left to try %s", _title(start).lower())
            continue
        tuning = tune_run(
            run,
            model_dir=model_dir,
            data_dir=data_dir,
            tasks=tasks,
            step=best_step(model_dir),
            search=start,
            names=names if trials > 1 else ("length_bonus",),
            metric=metric,
            trials=trials,
            utterances=_VALIDATION_UTTERANCES,
            seconds=max(left / (len(starts) - position), _LEAST_SECONDS),
        )
        best = tuning.best
        tuned = [each for each in names if trials > 1 and each != "beam_size"]
        values = "".join(f", {each} {getattr(best.search, each)}" for each in tuned)
        print(
            f"validation {tuning.metric} {best.score:.2f}: "
            f"{_title(best.search).lower()}, {start.decoder}{values}",
            flush=True,
        )
        tunings.append(tuning)
    choose_best = min if metric == "cer" else max
    # Of equally good ones the first, which is the simplest.
    chosen = choose_best(tunings, key=lambda tuning: tuning.best.score)
    write_search(chosen, model_dir)
    return chosen.best.search


def _title(search: SearchConfig) -> str:
    """Returns what a search is called on the page."""
    if search.beam_size == 1:
        return f"Greedy search of the {search.decoder}"
    title = f"Beam search ({search.beam_size})"
    return f"{title} with a language model of the training texts" if search.lm_text else title
