"""The coordinate search on known functions, what it writes, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.errors import UserError
from maestro_jax.evaluation import tuning
from maestro_jax.evaluation.tuning import (
    Trial,
    Tuning,
    TuningTranscriber,
    choose_names,
    coordinate_search,
    tune_run,
    write_search,
)
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.transcriber import Transcriber


def bowl(search):
    """Lowest at weight 0.7, bonus -0.6, and better with a larger beam up to 4."""
    return (
        (search.lm_weight - 0.7) ** 2
        + 0.5 * (search.length_bonus + 0.6) ** 2
        - 0.1 * np.log2(min(search.beam_size, 4))
    )


NAMES = ("lm_weight", "length_bonus", "beam_size")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_search_finds_what_a_grid_finds(sign):
    calls = []

    def evaluate(search):
        calls.append(search)
        return sign * bowl(search)

    trials, best = coordinate_search(
        evaluate, SearchConfig(), NAMES, higher_is_better=sign < 0, trials=100
    )
    # All values that steps of 0.05 and 0.1 from the start reach.
    grid = itertools.product(np.arange(-6, 25) * 0.05 + 0.3, np.arange(-20, 21) * 0.1, (1, 2, 4, 8))
    lowest = min(bowl(SearchConfig(lm_weight=w, length_bonus=b, beam_size=n)) for w, b, n in grid)
    assert sign * best.score == pytest.approx(lowest, abs=1e-3)
    # Larger beams that are no better are not taken; nothing is tried twice.
    assert best.search.beam_size == 4
    assert len(calls) == len(set(calls)) == len(trials) < 40
    assert trials[0].search == SearchConfig() and best in trials


def test_the_search_follows_a_valley_of_two_weights_together():
    """A large weight wants a large bonus: each alone makes it worse after a few steps."""

    def valley(search):
        return (search.length_bonus - 1.5 * search.lm_weight) ** 2 + 0.05 * (
            search.lm_weight - 2.5
        ) ** 2

    start = SearchConfig(lm_weight=0.3)
    names = ("lm_weight", "length_bonus")
    trials, best = coordinate_search(valley, start, names, higher_is_better=False, trials=200)
    # The least is 0, at 2.5 and 3.75; the start has 0.44.
    assert best.score < 0.01 and best.search.lm_weight == pytest.approx(2.5, abs=0.3)
    assert len(trials) < 60


def test_no_search_is_begun_that_would_end_too_late(monkeypatch):
    """A beam takes 10 s to compile, and each search a second."""
    now, compiled = 0.0, set()
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now)

    def evaluate(search):
        nonlocal now
        now += 1.0 + 10.0 * (search.beam_size not in compiled)
        compiled.add(search.beam_size)
        return bowl(search)

    for seconds in (20.0, 30.0, 40.0):
        now = 0.0
        compiled.clear()
        coordinate_search(
            evaluate, SearchConfig(), NAMES, higher_is_better=False, trials=99, seconds=seconds
        )
        # Nothing that is tried is much shorter than the time that was left.
        assert seconds - 11.0 < now <= seconds


def test_the_number_of_trials_is_kept_and_ranges_are():
    seen = []
    trials, best = coordinate_search(
        lambda search: search.lm_weight + abs(search.length_bonus),
        SearchConfig(beam_size=1),
        NAMES,
        higher_is_better=False,
        trials=7,
        seen=seen.append,
    )
    assert len(trials) == 7 and seen == trials
    assert min(trial.search.lm_weight for trial in trials) >= 0
    with pytest.raises(UserError, match="no finite score"):
        coordinate_search(
            lambda _: float("nan"), SearchConfig(), NAMES, higher_is_better=True, trials=3
        )


def test_the_start_is_tried_however_little_time_there_is():
    trials, best = coordinate_search(
        bowl, SearchConfig(), NAMES, higher_is_better=False, trials=9, seconds=0.0
    )
    assert [trial.search for trial in trials] == [SearchConfig()] and best is trials[0]


def test_what_can_be_tuned():
    plain = SearchConfig()
    assert choose_names(plain, "transducer") == ("length_bonus", "blank_penalty", "beam_size")
    assert choose_names(plain, "attention") == ("length_bonus", "length_alpha", "beam_size")
    with_all = SearchConfig(lm_arpa="a", phrases="p")
    assert "ilm_weight" in choose_names(with_all, "transducer")
    assert {"lm_weight", "phrases_weight"} <= set(choose_names(with_all, "ctc"))
    assert choose_names(plain, "transducer", ["beam_size", "ilm_weight"]) == (
        "ilm_weight",
        "beam_size",
    )
    for names, message in [
        (["lm_wieght"], "no value 'lm_wieght' to tune.*Did you mean 'lm_weight'"),
        (["lm_weight"], "--tune lm_weight needs a language model"),
        (["length_alpha"], "needs an attention decoder"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_names(plain, "transducer", names)


def test_a_test_split_is_never_opened(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """No name of one gets as far as the data or the model."""

    def opened(*_, **__):
        raise AssertionError("opened")

    for name in ("test_sets_of_run", "find_step", "TuningTranscriber"):
        monkeypatch.setattr(tuning, name, opened)
    for split in ("test", "TEST", "test_other", "tst-test", "test[:10%]"):
        with pytest.raises(UserError, match="never tuned on a test: give --split validation"):
            tune_run(None, model_dir=tmp_path, split=split)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="opened"):
        monkeypatch.setattr(tuning, "choose_decoder", lambda *_: "transducer")
        tune_run(None, model_dir=tmp_path)  # type: ignore[arg-type]


def test_only_the_second_pass_is_done_again_where_only_its_weight_changes(monkeypatch):
    searched = []

    def hypotheses(self, function, inputs):
        searched.append(inputs["audio"].sum())
        return Hypotheses(*[inputs["audio"]] * len(Hypotheses._fields))

    monkeypatch.setattr(Transcriber, "_hypotheses", hypotheses)
    monkeypatch.setattr(Transcriber, "set_search", lambda self, search: None)
    transcriber = object.__new__(TuningTranscriber)
    transcriber.rescoring = "a language model over words"
    batches = [{"audio": np.full((2, 3), value)} for value in (1, 2)]

    def decode(**options):
        transcriber.set_search(SearchConfig(**options))
        found = [transcriber._hypotheses(None, batch) for batch in batches]
        return [int(one.tokens.sum()) for one in found]

    for weight in (0.3, 0.5, 0.3):
        assert decode(lm_weight=weight, beam_size=4) == [6, 12]
    assert searched == [6, 12]
    assert decode(lm_weight=0.3, beam_size=8) == [6, 12]
    assert searched == [6, 12, 6, 12]
    # A model over pieces changes the search itself.
    transcriber.rescoring = None
    decode(lm_weight=0.5, beam_size=8)
    assert len(searched) == 6


def test_the_file_is_gin(tmp_path):
    trial = Trial(search=SearchConfig(lm_weight=0.4, lm_prune=(0, 1)), score=1.0, seconds=0.0)
    path = write_search(
        Tuning(names=("lm_weight",), metric="wer", trials=(trial,), best=trial, data=("x.dev",)),
        tmp_path,
    )
    lines = path.read_text().splitlines()
    assert "search_config.SearchConfig.lm_weight = 0.4" in lines
    assert "search_config.SearchConfig.lm_prune = (0, 1)" in lines
