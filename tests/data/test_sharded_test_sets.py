"""A test set that several processes share, here threads: every utterance once, one result."""

from __future__ import annotations

import json
import threading
import zlib

import numpy as np
import pytest
from answering import Answering

from maestro_jax.errors import UserError
from maestro_jax.evaluation import decoding, results
from maestro_jax.evaluation.predictions import read_predictions
from maestro_jax.evaluation.processes import Processes

TASKS = ("tinyvox_paired", "tinyvox_st_sl")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two utterances, which are padded to 0.08 s, make a batch."""
    monkeypatch.setitem(decoding._BATCH_UNITS, "cpu", 0.16)


def heard(samples, target):
    """Other words for each audio and target language."""
    checksum = zlib.crc32(np.asarray(samples, np.int16).tobytes())
    return f"{checksum % 7} {checksum % 11} {target}"


def evaluated(corpus, directory, count, *, answer=heard, devices=1, **options):
    """Evaluates in as many threads, and returns what each returned or raised.

    Every evaluation is of the same model and version, whatever the working tree is.
    """
    from maestro_jax.evaluation.run_evaluation import evaluate_test_sets, select_test_sets

    origin = {"step": 7, "weights": "ema", "search": {"beam_size": 1}, "checkpoint_files": "a"}
    origin |= {"git": {"commit": "0" * 40, "changed": False}, "date": "", "packages": {}}
    origin |= {"devices": {"kind": "cpu", "count": count * devices, "processes": count}}
    outcomes: dict[int, object] = {}

    def work(index):
        try:
            with Processes(directory, index=index, count=count, session=9) as processes:
                outcomes[index] = evaluate_test_sets(
                    select_test_sets(TASKS, "test"),
                    Answering(answer, data_shards=devices),
                    directory=directory,
                    data_dir=corpus.root,
                    origin=origin,
                    processes=processes,
                    **options,
                )
        except Exception as error:
            outcomes[index] = error

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [outcomes[index] for index in range(count)]


def contents(directory):
    """All files but for the times in them."""
    found = {}
    for path in sorted(directory.iterdir()):
        text = path.read_text()
        if path.name.endswith(".json"):
            values = json.loads(text)
            text = {k: v for k, v in values.items() if k not in ("decoding", "provenance")}
        elif path.suffix == ".md":
            text = [line for line in text.splitlines() if line.startswith(("|", "#"))]
        found[path.name] = text
    return found


@pytest.mark.extended
@pytest.mark.parametrize(("count", "devices"), [(2, 4), (3, 1), (7, 2)])
def test_processes_write_what_one_writes(corpus, tmp_path, count, devices):
    [alone] = evaluated(corpus, tmp_path / "one" / "result", 1)
    outcomes = evaluated(corpus, tmp_path / "several" / "result", count, devices=devices)
    assert contents(tmp_path / "several" / "result") == contents(tmp_path / "one" / "result")
    # The first process alone has scores.
    assert [len(outcome.tables) for outcome in outcomes] == [2] + [0] * (count - 1)
    assert [e.rows for e in outcomes[0].evaluations] == [e.rows for e in alone.evaluations]
    assert [e.decoding.utterances for e in outcomes[0].evaluations] == [6, 2]
    stored = read_predictions(
        tmp_path / "several" / "result" / "tinyvox_paired.test.hypotheses.jsonl"
    )
    records = corpus.records["paired_de_test"] + corpus.records["paired_sl_test"]
    assert {(p.id, p.reference, p.hypothesis) for p in stored} == {
        (record["id"], record["text"], heard(record["audio"], None)) for record in records
    }


def test_an_interrupted_evaluation_decodes_what_is_missing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_SECONDS_BETWEEN_PARTS", -1.0)
    [alone] = evaluated(corpus, tmp_path / "one" / "result", 1)
    records = corpus.records["paired_de_test"] + corpus.records["paired_sl_test"]
    decoded = []

    def fails(samples, target):
        if len(decoded) == 4:
            raise UserError("the machine was taken away")
        decoded.append(np.asarray(samples, np.int16).tobytes())
        return heard(samples, target)

    directory = tmp_path / "again" / "result"
    [error] = evaluated(corpus, directory, 1, answer=fails)
    assert str(error) == "the machine was taken away"
    parts = directory / "tinyvox_paired.test.parts"
    before = [p for path in parts.glob("*.jsonl") for p in read_predictions(path)]
    assert 0 < len(before) < len(records)

    again = []

    def goes_on(samples, target):
        again.append(np.asarray(samples, np.int16).tobytes())
        return heard(samples, target)

    [scores, _] = evaluated(corpus, directory, 2, answer=goes_on)
    assert contents(directory) == contents(tmp_path / "one" / "result")
    ids = {p.id for p in before}
    missing = [record["audio"].tobytes() for record in records if record["id"] not in ids]
    slovene = [record["audio"].tobytes() for record in corpus.records["paired_sl_test"]]
    assert sorted(again) == sorted(missing + slovene)
    assert [e.decoding.utterances for e in scores.evaluations] == [len(missing), 2]

    # Nothing is decoded once it is complete, unless it is to be overwritten.
    again.clear()
    [scores] = evaluated(corpus, directory, 1, answer=goes_on)
    assert not again and scores.evaluations[0].rows == alone.evaluations[0].rows
    [scores] = evaluated(corpus, directory, 1, answer=goes_on, overwrite=True)
    assert len(again) == len(records) + 2
    assert contents(directory) == contents(tmp_path / "one" / "result")
