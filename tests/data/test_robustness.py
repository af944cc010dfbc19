"""Evaluation under conditions: what is heard, against what, and what the table says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from answering import Answering

from maestro_jax.audio.conditions import (
    CODE_SWITCHING,
    CONDITIONS,
    SYNTHETIC_SPEECH,
    Utterance,
    find_conditions,
)
from maestro_jax.errors import UserError
from maestro_jax.evaluation.predictions import read_predictions

NAME = "tinyvox_paired.test"


@pytest.fixture
def records(corpus):
    return [*corpus.records["paired_de_test"], *corpus.records["paired_sl_test"]]


def evaluated(corpus, tmp_path, answers, names, tasks=("tinyvox_paired",), **options):
    """Evaluates with a model that knows some audio, and writes nothing for any other."""
    from maestro_jax.evaluation.processes import Processes
    from maestro_jax.evaluation.robustness import evaluate_robustness
    from maestro_jax.evaluation.run_evaluation import LoadedModel, select_test_sets

    heard = []

    def answer(samples, target):
        heard.append(np.asarray(samples, np.int16))
        return answers.get(heard[-1].tobytes(), "")

    model = LoadedModel(Answering(answer), tmp_path, {}, Processes(tmp_path))
    scores, tables = evaluate_robustness(
        select_test_sets(tasks, "test"),
        model,
        find_conditions(names),
        data_dir=corpus.root,
        **options,
    )
    return scores, tables, heard


def test_a_condition_beside_clean_speech(corpus, records, tmp_path):
    answers = {record["audio"].tobytes(): record["text"] for record in records}
    noisy = CONDITIONS["noise_0db"]
    # Under noise, the model recognises the German utterances alone.
    answers |= {
        noisy.apply(record["audio"], record["id"], 3).tobytes(): record["text"]
        for record in records
        if record["language"] == "de"
    }
    scores, [table], _ = evaluated(corpus, tmp_path, answers, ["noise_0db", "speed_0.9"], seed=3)
    assert [row.primary.value for row in scores.evaluations[0].rows] == [0.0, 0.0]
    noise = table.comparisons["noise_0db"]
    assert [(row.name, row.score) for row in noise.rows] == [("de", 0.0), ("sl", 100.0)]
    assert (noise.average.baseline_score, noise.average.difference) == (0.0, 50.0)
    assert table.comparisons["speed_0.9"].average.score == 100.0
    lines = [line.split() for line in table.text().splitlines()]
    assert next(line for line in lines if line[:1] == ["clean"]) == ["clean", *["0.0"] * 3]
    row = next(line for line in lines if line[:2] == ["pink", "noise,"])
    assert row[4:6] == ["50.0", "+50.0"] and row[-2:] == ["0.0", "100.0"]
    stored = json.loads((tmp_path / "robustness" / f"{NAME}.json").read_text())
    assert [each["condition"] for each in stored["conditions"]] == ["noise_0db", "speed_0.9"]
    assert (tmp_path / "robustness" / f"{NAME}.md").exists()
    slow = read_predictions(tmp_path / "robustness" / "speed_0.9" / f"{NAME}.hypotheses.jsonl")
    by_id = {prediction.id: prediction.seconds for prediction in slow}
    for record in records:
        assert by_id[record["id"]] == pytest.approx(len(record["audio"]) / 0.9 / 16_000, abs=1e-4)


def test_pairs_are_scored_against_both_references(corpus, records, tmp_path):
    answers = {record["audio"].tobytes(): record["text"] for record in records}
    utterances = [Utterance(each["id"], each["language"], each["text"]) for each in records]
    by_id = {record["id"]: record for record in records}
    expected = {}
    for record, partner in zip(records, CODE_SWITCHING.partners(utterances), strict=True):
        second = by_id[partner.id]
        assert second["language"] != record["language"]
        text = f"{record['text']} {second['text']}"
        answers[CODE_SWITCHING.join(record["audio"], second["audio"]).tobytes()] = text
        expected[record["id"]] = text
    _, [table], _ = evaluated(corpus, tmp_path, answers, ["code_switched"])
    stored = read_predictions(
        tmp_path / "robustness" / "code_switched" / f"{NAME}.hypotheses.jsonl"
    )
    assert {each.id: each.reference for each in stored} == expected
    assert {each.id: each.hypothesis for each in stored} == expected
    average = table.comparisons["code_switched"].average
    assert (average.score, average.baseline_score) == (0.0, 0.0)
    # A test set of one language has no pairs, and the table says so.
    _, [table], _ = evaluated(
        corpus, tmp_path / "one", answers, ["code_switched"], tasks=["tinyvox_paired_sl"]
    )
    assert not table.comparisons and "only sl" in table.text()


def test_synthetic_speech_reads_the_transcript(corpus, records, tmp_path):
    pytest.importorskip("espeakng_loader")
    _, _, heard = evaluated(corpus, tmp_path, {}, ["synthetic"])
    spoken = [
        SYNTHETIC_SPEECH.speak(Utterance(each["id"], each["language"], each["text"])).tobytes()
        for each in records
    ]
    assert set(spoken) <= {samples.tobytes() for samples in heard}


def test_texts_have_no_conditions(corpus, tmp_path):
    from maestro_jax.evaluation.processes import Processes
    from maestro_jax.evaluation.robustness import evaluate_robustness
    from maestro_jax.evaluation.run_evaluation import LoadedModel, TestSet

    texts = TestSet(name="tinyvox_mt", kind="mt", tasks=("tinyvox_mt_de",), split="train")
    model = LoadedModel(Answering(lambda *_: ""), tmp_path, {}, Processes(tmp_path))
    with pytest.raises(UserError, match="'tinyvox_mt' has no audio"):
        evaluate_robustness([texts], model, find_conditions(["telephone"]))
