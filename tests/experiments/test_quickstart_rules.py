"""The rules of a quickstart over hand-made figures, its splits, and its budget."""

from __future__ import annotations

import dataclasses
import itertools
import types
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.interpreters import partial_eval
from quickstart_figures import LAPTOP, READERS

from maestro_jax.batches import synthetic_batch
from maestro_jax.data.corpora.speech_entries import Entry
from maestro_jax.experiments.quickstart import budget, rules
from maestro_jax.experiments.quickstart import figures as figures_module
from maestro_jax.experiments.quickstart.budget import Estimate, Pace, parse_budget
from maestro_jax.experiments.quickstart.figures import Figures, likely_language, scripts_of
from maestro_jax.experiments.quickstart.gin_files import (
    StagePlan,
    StreamPlan,
    gin_text,
    single_shape,
)
from maestro_jax.experiments.quickstart.rules import Device, choose
from maestro_jax.experiments.quickstart.splits import split_utterances
from maestro_jax.experiments.quickstart.survey import Heard, Measured, judge, pieces
from maestro_jax.gin_utils import gin_config
from maestro_jax.training.parameter_trees import named_leaves, unbox
from maestro_jax.training.state import initial_params


def changed(**values: object) -> Figures:
    return dataclasses.replace(READERS, **values)


def test_every_second_is_for_something() -> None:
    for figures in (READERS, changed(translated={"train": 9}), changed(unspoken_lines=9000)):
        shares = choose(figures, 2400.0, LAPTOP).shares
        assert sum(dataclasses.astuple(shares)) == pytest.approx(2400.0)


def test_pretraining_grows_with_what_is_unpaired() -> None:
    times = [
        choose(changed(untranscribed_hours=hours), 1000.0, LAPTOP).shares.pretrain
        for hours in (0.0, 1.5, 100.0)
    ]
    training = 1000.0 - 160.0
    assert times == sorted(times)
    # 15%; half of the speech unpaired: half of the way to 50%.
    assert times[:2] == pytest.approx([0.15 * training, (0.15 + 0.175) * training])
    assert times[2] < 0.5 * training


def test_translations_add_a_stage_and_a_stream() -> None:
    without = choose(READERS, 2400.0, LAPTOP)
    recipe = choose(changed(translated={"train": 1400}), 2400.0, LAPTOP)
    assert without.shares.translation == 0 < recipe.shares.translation
    assert (without.streams, recipe.streams) == (
        ("speech", "paired"),
        ("speech", "paired", "st"),
    )
    assert (without.text_starts, recipe.text_starts) == (0.0, 0.3)
    only = choose(changed(translated={"train": 1400}, characters=0), 2400.0, LAPTOP)
    assert only.shares.recognition == 0 and "paired" not in only.streams


def test_vocabulary_follows_letters_and_their_rate() -> None:
    assert choose(READERS, 2400.0, LAPTOP).vocabulary == "char"
    # 20 characters a second at a speed of 1.15 are more than nine tenths of the 25 frames.
    assert choose(changed(fast=19.5), 2400.0, LAPTOP).vocabulary == "char"
    fast = choose(changed(fast=20.0, characters=90_000), 2400.0, LAPTOP)
    assert (fast.vocabulary, fast.vocabulary_size) == ("unigram", 150)
    chinese = choose(changed(alphabet=2000), 2400.0, LAPTOP)
    assert (chinese.vocabulary, chinese.byte_fallback) == ("char", True)


def test_speeds_follow_speakers() -> None:
    def speeds(speakers: int, apart: bool | None) -> tuple[float, ...]:
        figures = changed(speakers={"train": speakers}, speakers_apart=apart)
        return choose(figures, 2400.0, LAPTOP).speeds

    assert max(speeds(50, True)) == 1.15
    assert speeds(1, False) == (0.95, 1.0, 1.05)
    assert speeds(500, True) == (0.9, 1.0, 1.1)


def test_larger_budgets_have_larger_models() -> None:
    names = [choose(READERS, seconds, LAPTOP).size.name for seconds in (180, 2400, 20_000, 1e6)]
    order = [size.name for size in rules.SIZES]
    assert names[0] == names[1] == "tiny"
    assert [order.index(name) for name in names] == sorted(map(order.index, names))
    assert choose(READERS, 1e7, LAPTOP).size.name == "medium"  # An hour of speech, no more.
    large = changed(hours={"train": 500.0})
    assert choose(large, 1e6, Device(kind="gpu", count=8)).size.name == "base"


def test_few_passes_need_neither_dropout_nor_a_transducer() -> None:
    short, long = choose(READERS, 180.0, LAPTOP), choose(READERS, 20_000.0, LAPTOP)
    assert (short.dropout, short.hybrid) == (0.0, False)
    # A larger model learns by heart sooner.
    assert long.size.name != "tiny" and 33 < long.passes < 66
    assert (long.dropout, long.hybrid) == (0.1, True)
    middle = choose(READERS, 2000.0, LAPTOP)
    assert middle.size.name == "tiny" and 33 < middle.passes < 100
    assert (middle.dropout, middle.hybrid) == (0.0, False)


def test_batch_lengths_pay_for_their_compilation() -> None:
    # 75 s of 100 s at 2.4 times the length, or 50 s at 1.6: the same; 40 s more pay for a second.
    padding = (2.4, 1.6)
    assert [rules.batch_lengths(padding, seconds, 25.0) for seconds in (70.0, 140.0)] == [1, 2]
    assert rules.batch_lengths((1.0, 1.0, 1.0), 1e6, 25.0) == 1
    assert rules.batch_lengths(READERS.padding, 1e6, 25.0) == 4


def test_every_choice_has_a_rule_and_a_figure() -> None:
    for choice in choose(READERS, 2400.0, LAPTOP).choices:
        assert all(dataclasses.astuple(choice))


@pytest.mark.parametrize("stage", ["pretrain", "recognise", "translate"])
def test_gin_files_are_runs(stage: str, tmp_path: Path) -> None:
    recipe = choose(changed(translated={"train": 1400}, unspoken_lines=99), 2400.0, LAPTOP)
    shapes = {
        "speech": single_shape(seconds=4.0, batch=4),
        "paired": single_shape(seconds=8.0, batch=4, tokens=64),
        "text": single_shape(batch=4, tokens=64),
        "st": single_shape(seconds=8.0, batch=4, translation_tokens=64),
    }
    names = {"pretrain": list(shapes), "recognise": ["paired"], "translate": ["st"]}[stage]
    streams = {
        name: StreamPlan(tasks=(f"{name}_a", f"{name}_b"), shapes=(shapes[name],)) for name in names
    }
    short = dataclasses.replace(shapes["paired"], limit=64_000, text_tokens=32, batch_size=8)
    if stage == "recognise":
        streams["paired"] = StreamPlan(tasks=("one",), shapes=(short, shapes["paired"]))
    plan = StagePlan(
        name=stage,
        streams=streams,
        steps=600,
        late_start=180,
        init_from=None if stage == "pretrain" else tmp_path,
        vocab_size=88,
        command="maestro train",
    )
    path = tmp_path / f"{stage}.gin"
    path.write_text(gin_text(plan, recipe))
    run = gin_config.parse_and_build([str(path)])
    assert run.steps == 600
    assert run.optimizer.decay_steps == (None if stage == "pretrain" else 600)
    assert run.model.decoder.vocab_size == 88
    assert set(run.streams) == set(names)
    if stage == "pretrain":
        assert run.optimizer.learning_rate == pytest.approx(1e-3)
        assert run.objective.active_streams(179) == ("speech", "paired")
        assert set(run.objective.active_streams(180)) >= set(names)
    else:
        assert run.optimizer.learning_rate == 1.5e-3 and run.objective.augment
    if stage == "recognise":
        config = run.streams["paired"]
        assert [each.batch_size for each in config.shapes()] == [8, 4]
        assert [each.text_tokens for each in config.shapes()] == [32, 64]
        assert config.augmentation.speeds == recipe.speeds
        assert run.objective.decoders == ("ctc",)
        assert run.init_from == str(tmp_path)


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_encoder_is_aligned_by_ctc_before_all_else(tmp_path: Path, hybrid: bool) -> None:
    recipe = dataclasses.replace(choose(READERS, 2400.0, LAPTOP), hybrid=hybrid)
    streams = {
        "paired": StreamPlan(tasks=("a",), shapes=(single_shape(seconds=8.0, batch=4, tokens=64),))
    }
    path = tmp_path / "finetune.gin"
    # A corrected number of steps keeps the schedule, and with it the program.
    for planned, aligned, whole, augmented in ((0, 150, 226, 300), (1000, 250, 376, 500)):
        plan = StagePlan(
            name="recognise",
            streams=streams,
            steps=600,
            planned=planned,
            vocab_size=88,
            command="maestro train",
        )
        path.write_text(gin_text(plan, recipe))
        objective = gin_config.parse_and_build([str(path)]).objective
        assert objective.augment and objective.augment_start_step == augmented
        assert objective.ctc_weight == 1.0
        if not hybrid:
            assert objective.decoders == ("ctc",)
            continue
        assert objective.decoders == ("transducer", "ctc")
        schedule = objective.loss_weights["paired"]["transducer"]
        weights = [float(schedule.at(step)) for step in (0, aligned, whole, 599)]
        assert weights == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("stage", "hybrid"), [("recognise", False), ("recognise", True), ("translate", False)]
)
def test_what_no_loss_reads_is_frozen_and_nothing_else(
    tmp_path: Path, stage: str, hybrid: bool
) -> None:
    figures = changed(translated={"train": 1400})
    recipe = dataclasses.replace(choose(figures, 2400.0, LAPTOP), hybrid=hybrid)
    shape = single_shape(seconds=2.0, batch=1, tokens=8 * (stage == "recognise"))
    if stage == "translate":
        shape = dataclasses.replace(shape, translation_tokens=8)
    name = {"recognise": "paired", "translate": "st"}[stage]
    plan = StagePlan(
        name=stage,
        streams={name: StreamPlan(tasks=("a",), shapes=(shape,))},
        steps=600,
        vocab_size=88,
        command="maestro train",
    )
    path = tmp_path / "finetune.gin"
    path.write_text(gin_text(plan, recipe))
    run = gin_config.parse_and_build([str(path)])

    def initial() -> Any:
        return unbox(initial_params(run.model, run.objective, run.batch_shapes(), 0))

    def loss(params: Any) -> jax.Array:
        batch = synthetic_batch(run.streams, 0, 60)
        options = {"rng": jax.random.key(0), "step": 599, "controls": None, "train": True}
        return run.objective.loss(run.model, params, params, batch, **options)[0]

    params = jax.eval_shape(initial)
    jaxpr = jax.make_jaxpr(loss)(params).jaxpr
    _, is_read = partial_eval.dce_jaxpr(jaxpr, [True])
    names = [each for each, _ in named_leaves(params)]
    read = {each for each, used in zip(names, is_read, strict=True) if used}
    trained = {
        each
        for part in run.optimizer.by_group(params).values()
        for each, leaf in named_leaves(part)
    }
    assert read <= trained
    # Told the language to write, which the recogniser is not; and blocks of what is frozen.
    assert trained - read <= {"shared_encoder/language_embedding/embedding"}


# ---------------------------------------------------------------------------------- bad recordings


def entry(name: str, text: str = "a" * 30, **values: object) -> Entry:
    return Entry(id=name, audio=f"{name}.wav", text=text, language="en", **values)


def test_bad_recordings_are_named_and_left_out() -> None:
    cases = {
        "good": (entry("good"), Measured(3.0, -20.0, 0.0, ())),
        "fast": (entry("fast"), Measured(2.0, -20.0, 0.0, ())),
        "unreadable": (
            entry("unreadable"),
            Measured(0.0, -200.0, 0.0, (("unreadable audio", "x"),)),
        ),
        "silent": (entry("silent"), Measured(3.0, -90.0, 0.0, ())),
        "clipped": (entry("clipped"), Measured(3.0, -3.0, 0.05, ())),
        "ruined": (entry("ruined"), Measured(3.0, -3.0, 0.5, ())),
        "crowded": (entry("crowded", "a" * 200), Measured(3.0, -20.0, 0.0, ())),
        "drawn out": (entry("drawn out", "aa"), Measured(9.0, -20.0, 0.0, ())),
        "one word": (entry("one word", "aa"), Measured(1.5, -20.0, 0.0, ())),
        "endless": (entry("endless", "a" * 600), Measured(60.0, -20.0, 0.0, ())),
        "tested": (entry("tested", "a" * 200, split="test"), Measured(3.0, -20.0, 0.0, ())),
        "radio": (entry("radio", ""), Measured(60.0, -20.0, 0.0, ())),
        "text": (Entry(id="text", text="x" * 999), None),
    }
    # Most recordings are good, and their median speed is 10 characters a second.
    good = [(entry(f"g{number}"), Measured(3.0, -20.0, 0.0, ())) for number in range(20)]
    found = judge(*zip(*cases.values(), *good, strict=True))
    kinds = {each.entry.id: (each.kind, each.kept) for each in found.bad}
    assert kinds == {
        "unreadable": ("unreadable audio", False),
        "silent": ("silent audio", False),
        "clipped": ("clipped audio", True),
        "ruined": ("clipped audio", False),
        "crowded": ("text too long for its audio", False),
        "drawn out": ("audio too long for its text", False),
        "endless": ("too long", False),
        "tested": ("text too long for its audio", True),
    }
    used = {each.entry.id for each in found.heard}
    assert used >= {"good", "fast", "clipped", "one word", "tested", "radio", "text"}
    left_out = {name for name, (_, kept) in kinds.items() if not kept} - {"endless"}
    assert used.isdisjoint(left_out)
    # Too long to train on as a pair; its speech and its text are used apart.
    apart = {one.entry.id: one for one in found.heard if one.entry.id.startswith("endless")}
    assert (apart["endless"].entry.text, apart["endless"].seconds) == ("", 60.0)
    assert (apart["endless@text"].entry.audio, len(apart["endless@text"].entry.text)) == ("", 600)
    assert found.bad_summary().startswith("8 bad recordings: ")
    assert len(found.bad_table().splitlines()) == 1 + len(found.bad)


def test_each_language_has_its_own_speed() -> None:
    chinese = [dataclasses.replace(entry(f"c{n}", "字" * 12), language="zh") for n in range(9)]
    english = [entry(f"e{n}", "a" * 45) for n in range(3)]
    both = [*chinese, *english]
    found = judge(both, [Measured(3.0, -20.0, 0.0, ())] * len(both))
    assert not found.bad and len(found.heard) == 12


def test_test_sets_are_not_trained_on_by_halves() -> None:
    cases = {
        "no text": entry("a", "", split="test"),
        "no recording": Entry(id="b", text="spoken in the test", split="validation"),
        "empty text": entry("c", "\U0001f600 ...", split="test"),
        "": entry("d", "1984", split="test"),
    }
    heard = [Measured(3.0, -20.0, 0.0, ()) if one.audio else None for one in cases.values()]
    found = judge(list(cases.values()), heard)
    assert [one.kind for one in found.bad] == ["no text", "no recording", "empty text"]
    assert [one.entry.id for one in found.heard] == ["d"]


def test_long_untranscribed_recordings_are_divided() -> None:
    one = Heard(entry=dataclasses.replace(entry("radio", ""), span=(10.0, 70.0)), seconds=60.0)
    spans = [each.entry.span for each in pieces(one)]
    assert spans == [(10.0, 30.0), (30.0, 50.0), (50.0, 70.0)]
    assert len({each.entry.id for each in pieces(one)}) == 3
    short = Heard(entry=entry("short", ""), seconds=20.0)
    assert pieces(short) == [short]


# ------------------------------------------------------------------------------------------ splits


def heard(speaker: str, text: str, seconds: float = 4.0, split: str = "") -> Heard:
    one = Entry(
        id=f"{speaker}{text}", audio="a.wav", text=text, language="en", speaker=speaker, split=split
    )
    return Heard(entry=one, seconds=seconds)


def test_speakers_are_held_out_whole() -> None:
    utterances = [
        heard(f"s{speaker}", f"sentence {speaker} {number}")
        for speaker in range(20)
        for number in range(10)
    ]
    splits = split_utterances(utterances)
    speakers = {
        name: {
            each.entry.speaker
            for each, split in zip(utterances, splits.of, strict=True)
            if split == name
        }
        for name in ("train", "validation", "test")
    }
    assert all(speakers.values())
    for one, other in itertools.combinations(speakers.values(), 2):
        assert not one & other
    assert (splits.by, splits.speakers_apart, splits.sentences_shared) == ("speakers", True, 0.0)
    assert 10 <= splits.of.count("test") <= 30
    # The same call divides in the same way.
    assert split_utterances(utterances) == splits


def test_speakers_with_sentences_of_their_own_are_preferred() -> None:
    # Ten speakers read the same sentences, three read their own.
    same = [
        heard(f"s{speaker}", f"sentence {number}") for speaker in range(10) for number in range(9)
    ]
    own = [heard(f"o{speaker}", f"own {speaker} {n}") for speaker in range(3) for n in range(9)]
    splits = split_utterances([*same, *own])
    tested = {
        each.entry.speaker
        for each, split in zip([*same, *own], splits.of, strict=True)
        if split == "test"
    }
    assert splits.sentences_shared == 0.0 and tested <= {"o0", "o1", "o2"}


def test_one_speaker_is_divided_by_sentences() -> None:
    utterances = [heard("s", f"Sentence {number // 2}!") for number in range(200)]
    splits = split_utterances(utterances)
    assert (splits.by, splits.speakers_apart, splits.sentences_shared) == ("sentences", False, 0.0)
    assert set(splits.of) == {"train", "validation", "test"}
    # Both recordings of a sentence are in one split.
    assert splits.of[::2] == splits.of[1::2]


def test_commands_are_divided_by_recordings() -> None:
    # Of ten digits none may be held out as a whole: it would never be learned.
    utterances = [heard("", f"digit {number % 10}", seconds=1.0) for number in range(200)]
    splits = split_utterances(utterances)
    assert (splits.by, splits.speakers_apart) == ("recordings", None)
    trained = {
        each.entry.text
        for each, split in zip(utterances, splits.of, strict=True)
        if split == "train"
    }
    assert len(trained) == 10 and set(splits.of) == {"train", "validation", "test"}


def test_few_speakers_leave_their_voices_to_training() -> None:
    utterances = [heard(f"s{n % 4}", f"sentence {n}") for n in range(80)]
    stray = heard("t", "one sentence")
    unknown = heard("", "another sentence")
    splits = split_utterances([*utterances, stray, unknown])
    # Another voice for the validation set would be a third of what is left.
    assert (splits.by, splits.speakers_apart) == ("speakers+sentences", None)
    of_test = {
        each.entry.speaker
        for each, split in zip([*utterances, stray, unknown], splits.of, strict=True)
        if split == "test"
    }
    # One sentence of one voice would tell nothing; who is not known is trained on.
    assert of_test - {"t"} and "" not in of_test and splits.of[-1] == "train"
    assert splits.of.count("train") > 50


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_few_recordings(count: int, expected: int) -> None:
    for speakers in (1, 3):
        utterances = [heard(f"s{n % speakers}", "the same") for n in range(count)]
        assert len(set(split_utterances(utterances).of)) == expected


def test_what_is_held_out_in_words() -> None:
    def words(**values: object) -> str:
        return changed(**values).split_in_words()

    assert words().startswith("The test and validation sets are from the directory: no speaker")
    mixed = words(split_by="given+sentences", speakers_apart=None, unspoken_tests=0.25)
    assert "validation set is held out by sentences: not all speakers are known" in mixed
    assert mixed.endswith(
        "25% of them are in the unspoken text, which makes scores better than they are."
    )
    assert "validation set is empty" in words(utterances={"train": 2, "test": 1})
    assert "nothing is scored" in words(utterances={"train": 1})
    assert changed(scripts=("Cjk",)).contents_in_words() == "Language ml, in Han letters."


def test_given_splits_are_kept_and_completed() -> None:
    utterances = [
        *(heard(f"s{n}", f"a {n}", split="train") for n in range(30)),
        *(heard("t", f"b {n}", split="test") for n in range(5)),
    ]
    splits = split_utterances(utterances)
    assert splits.of[30:] == ("test",) * 5
    assert set(splits.of[:30]) == {"train", "validation"}


# ------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), ("90s", 90), ("45", 2700)),
        *(("40 min", 2400), ("2 hours", 7200), ("1 hour 30 minutes", 5400), ("1d", 86_400)),
    ],
)
def test_budgets(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0m", "3x", "1h30", "nan", "9" * 400, "367d"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        parse_budget(text)


def test_steps_are_corrected_to_the_time() -> None:
    estimate = Estimate(
        step=20, steps=1000, seconds_per_step=0.4, extra_per_step=0.1, seconds_left=250.0
    )
    assert estimate.needed == pytest.approx(980 * 0.5)
    assert estimate.fitting_steps == 20 + 500
    assert estimate.corrected(early=True) == estimate.corrected(early=False) == 520
    costly = dataclasses.replace(estimate, later_cost=2.25)
    assert costly.fitting_steps == 20 + 250
    fits = dataclasses.replace(estimate, seconds_left=510.0)
    assert fits.corrected(early=True) is None
    # Too few steps leave time for the next stage.
    assert dataclasses.replace(estimate, seconds_left=560.0).corrected(early=True) is None
    # What a restart takes is not there for steps; where that is much, the run is cut off.
    assert dataclasses.replace(estimate, restart_seconds=50.0).corrected(early=True) == 420
    assert dataclasses.replace(estimate, restart_seconds=100.0).corrected(early=True) is None
    # Only a run whose learning rate has not fallen yet becomes longer.
    roomy = dataclasses.replace(estimate, seconds_left=2000.0)
    assert roomy.corrected(early=True) == 20 + 4000
    assert roomy.corrected(early=False) is None


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def run_pace(monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int, times: list[float]):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    pace = Pace(seconds)
    stops: list[int] = []
    trainer = types.SimpleNamespace(
        run=types.SimpleNamespace(steps=steps, log_every=10),
        start_step=0,
        stop=lambda: stops.append(step),
    )
    step = 0
    pace.on_start(trainer)
    for step, taken in enumerate(times, start=1):
        clock.now += taken
        pace.on_step(trainer, types.SimpleNamespace(step=step))
        if stops:
            break
    return pace, stops


def test_pace_leaves_compilation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty seconds of compilation, of which a restart takes a part; then half a second per step.
    times = [20.0] + [0.5] * 400
    pace, stops = run_pace(monkeypatch, 20.0 + 0.5 * 400, 1000, times)
    assert stops == [budget.FIRST_STEPS]
    assert pace.new_steps == pytest.approx(400 - budget._RESTART * 20 / 0.5, rel=0.05)
    assert pace.seconds_per_step == pytest.approx(0.5)
    pace, stops = run_pace(monkeypatch, 20.0 + 0.5 * 210, 200, times)
    assert pace.new_steps is None and not stops


def test_pace_notices_a_slower_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0.5] * 100 + [1.5] * 900
    pace, stops = run_pace(monkeypatch, 0.5 * 400, 400, times)
    assert pace.new_steps is not None and 100 < stops[0] < 250
    assert stops[0] < pace.new_steps < 400


def test_pace_corrects_at_few_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs on the machine come and go."""
    times = [0.5] * 30 + [0.6] * 970
    _, stops = run_pace(monkeypatch, 0.5 * 1000, 1000, times)
    assert stops == [150], "at the second check, since the first has seen few of the slow steps"
    times = [0.5] * 60 + [0.9] * 20 + [0.5] * 920
    _, stops = run_pace(monkeypatch, 0.5 * 1050, 1000, times)
    assert not stops


def test_pace_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, stops = run_pace(monkeypatch, 20.0, 22, [1.0] * 22)
    assert pace.out_of_time and stops == [21] and pace.new_steps is None
    # Compilation may take all of the time; there is a model and something to report all the same.
    pace, stops = run_pace(monkeypatch, 20.0, 90, [90.0] + [1.0] * 22)
    assert pace.out_of_time and stops == [10]


# ----------------------------------------------------------------------------------------- figures


def test_scripts_and_likely_languages() -> None:
    assert scripts_of(["abc абв г", "где"])[0] == "Cyrillic"
    assert likely_language(["മലയാളം"]) == "ml"
    assert likely_language(["ich bin"]) == "en"
    assert likely_language(["日本語のテキスト"]) == "ja"
    assert likely_language(["a long English text", "の"]) == "en"
    assert likely_language([]) == "en"


def test_lines_longer_than_transcripts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_module, "_padding", lambda seconds, longest: (1.0,))
    utterances = [heard(f"s{n}", f"word {n}") for n in range(12)]
    lines = ["A sentence of forty characters, or so. " * 3, "W" * 900]
    unspoken = [
        Heard(entry=Entry(id=f"t{n}", text=text, language="en"), seconds=0.0)
        for n, text in enumerate([*lines, "word 3"])
    ]
    splits = split_utterances(utterances)
    figures = figures_module.figures_of(utterances, splits, unspoken, "")
    assert figures.longest_text <= 7 and 240 <= figures.longest_line <= 256
    # Three sentences, four parts of the word without end, and a sentence of the corpus.
    assert figures.unspoken_lines == 8
    tested = [
        one.entry.text for one, split in zip(utterances, splits.of, strict=True) if split == "test"
    ]
    assert figures.unspoken_tests == tested.count("word 3") / len(tested)
    figures = figures_module.figures_of(utterances, splits, unspoken[2:], "")
    assert figures.longest_line == figures.longest_text
