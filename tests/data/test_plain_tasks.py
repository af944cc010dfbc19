"""Tasks as they are written for T5X: no string ids or languages, but metric functions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from answering import Answering

from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES

WORDS = "eins zwei drei vier fünf sechs sieben acht".split()
UTTERANCES = 64
WRONG = tuple(range(0, UTTERANCES, 8))
TEXTS = [f"{WORDS[n % 8]} {WORDS[n // 8]}." for n in range(UTTERANCES)]
SAID = [f"{WORDS[n % 8]} falsch." if n in WRONG else text for n, text in enumerate(TEXTS)]


numbers_of_tasks = itertools.count()


def register(
    ids=None, language="de", texts=TEXTS, audio=np.int16, keep_text=True, name="plain", **more
):
    """A task over a data source of functions; returns its name."""
    import seqio
    import tensorflow as tf

    def dataset(split, shuffle_files=False, seed=None):
        count = len(texts)
        examples = {
            "audio": np.tile(np.arange(count, dtype=audio)[:, None], (1, 10)),
            "text": np.asarray([text.encode() for text in texts], object),
            "language": np.full(
                count, LANGUAGES.index(language) if language in LANGUAGES else -1, np.int32
            ),
        }
        if ids is not None:
            examples["id"] = np.asarray(ids)
        return tf.data.Dataset.from_tensor_slices(examples)

    def tokenize(dataset, output_features):
        return seqio.preprocessors.tokenize(dataset, output_features, keep_text, with_eos=False)

    name = f"{name}_{next(numbers_of_tasks)}" if name == "plain" else name
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=["test"]),
        preprocessors=[tokenize],
        output_features={
            "audio": seqio.ContinuousFeature(dtype=tf.as_dtype(audio), rank=1),
            "text": seqio.Feature(seqio.ByteVocabulary(0), add_eos=False),
            "language": seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False, rank=0),
        },
        **more,
    )
    return name


def evaluated(tmp_path, *names):
    from maestro_jax.evaluation.run_evaluation import evaluate_test_sets, select_test_sets

    # Reads the number of the utterance out of its samples.
    listener = Answering(lambda audio, _: SAID[audio[0] % UTTERANCES], samples=100)
    sets = select_test_sets(names, "test")
    return evaluate_test_sets(sets, listener, directory=tmp_path / "evaluation")


def test_every_utterance_is_scored(tmp_path) -> None:
    name = register()
    report = evaluated(tmp_path, name)
    [evaluation] = report.evaluations
    [row] = evaluation.rows
    assert (row.direction, row.utterances, evaluation.repeats) == ("de", 64, 0)
    assert row.scores["wer"].value == pytest.approx(100 * len(WRONG) / (2 * UTTERANCES))
    lines = (tmp_path / f"evaluation/{name}.test.hypotheses.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {f"{name}:{n}" for n in range(64)}


def test_metric_functions_get_what_seqio_gives_them(tmp_path) -> None:
    import seqio

    seen = []

    def bare(text, example=None, is_target=False):
        seen.append((int(example["audio"][0]), is_target))
        return text.rstrip(".").upper()

    def exact(targets, predictions):
        same = [
            target == prediction for target, prediction in zip(targets, predictions, strict=True)
        ]
        return {"exact": 100 * np.mean(same), "first": seqio.metrics.Text(predictions[0])}

    def letters(targets, predictions):
        return {"letters": seqio.metrics.Scalar(sum(map(len, predictions))), "exact": -1}

    name = register(metric_fns=[exact, letters], postprocess_fn=bare)
    report = evaluated(tmp_path, name)
    [evaluation] = report.evaluations
    assert seen == [(n, target) for n in range(64) for target in (True, False)]

    task = seqio.TaskRegistry.get(name)
    examples = list(task.get_dataset(split="test", shuffle=False).as_numpy_iterator())
    tokens = [[task.output_features["text"].vocabulary.encode(said)] for said in SAID]
    expected: dict = {}
    for function in (letters, exact):
        # It has a list of hypotheses, here of one, where they differ in length.
        metric = seqio.metrics.LegacyMetric.empty(
            function,
            lambda text, example, is_target: bare(
                text if is_target else text[0], example, is_target
            ),
        )
        expected |= metric.from_model_output(
            examples, tokens, task.output_features, target_field_name="text"
        ).compute()
    [found] = evaluation.task_metrics.values()
    assert found["exact"] == expected["exact"] == 87.5
    assert found["letters"] == expected["letters"].value
    assert found["first"] == expected["first"].textdata == "EINS FALSCH"
    assert found["letters/exact"] == -1
    assert "exact 87.5" in report.text() and "exact 87.5" in report.tables[0].markdown()
    [content] = report.as_dict()
    assert content["task_metrics"][name]["exact"] == 87.5
    assert content["postprocessed"] == [name]
    # Our own scores compare the same strings.
    assert evaluation.rows[0].scores["wer"].value == pytest.approx(100 * 8 / 128)
    lines = (tmp_path / f"evaluation/{name}.test.hypotheses.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["hypothesis"].isupper()


def test_labels_of_postprocess_are_for_metric_functions(tmp_path) -> None:
    def label(text, example=None, is_target=False):
        return WORDS.index(text.split()[0])

    def accuracy(targets, predictions):
        return {"accuracy": np.mean(np.equal(targets, predictions))}

    name = register(metric_fns=[accuracy], postprocess_fn=label)
    [evaluation] = evaluated(tmp_path, name).evaluations
    assert evaluation.task_metrics[name] == {"accuracy": 1.0}
    assert evaluation.rows[0].scores["wer"].value == pytest.approx(100 * 8 / 128)
    with pytest.raises(UserError, match="makes int of a text and the task has no metric_fns"):
        evaluated(tmp_path, register(postprocess_fn=label))


def by_score(targets, scores):
    return {}


def with_aux(targets, predictions, aux_values):
    return {}


def strange(references, hypotheses):
    return {}


def failing(targets, predictions):
    raise ZeroDivisionError("nothing there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric_fns": [by_score]}, "by_score of task .* takes scores of targets"),
        ({"metric_fns": [with_aux]}, "with_aux of task .* takes auxiliary values"),
        ({"metric_fns": [strange]}, "metric_fns of task .*positional arguments"),
        ({"metric_fns": [failing]}, "failing of task .* failed: ZeroDivisionError: nothing there"),
        ({"metric_objs": [object()]}, "has metric_objs, which are not supported"),
        (
            {"postprocess_fn": lambda text: text},
            "postprocess_fn of task .* failed for 'eins eins.'",
        ),
        ({"ids": [b"a"] * 3 + [b""] * 61}, "examples 0 and 1 of task .* have the same id 'a'"),
        ({"ids": [b"a", b""] * 32}, "example 1 of task .* has the id ''"),
        ({"ids": np.ones((64, 2), int)}, r"example 0 of task .* has the id '\[1, 1\]'"),
        ({"audio": np.float32}, "'audio' of task .* is float32 of rank 1; make it int16"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(tmp_path, register(**arguments))


def test_ids_may_be_numbers(tmp_path) -> None:
    name = register(ids=np.arange(100, 164))
    [evaluation] = evaluated(tmp_path, name).evaluations
    assert evaluation.utterances == 64
    lines = (tmp_path / f"evaluation/{name}.test.hypotheses.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["id"] == "100"


@pytest.mark.parametrize(
    ("name", "language", "row"),
    [("plain", "sl", "sl"), ("my_speech_pl", "", "pl"), ("plain", "", "und")],
)
def test_languages(tmp_path, caplog, name, language, row) -> None:
    [evaluation] = evaluated(tmp_path, register(language=language, name=name)).evaluations
    assert [one.direction for one in evaluation.rows] == [row]
    assert ("does not say its language" in caplog.text) == (row == "und")


def test_a_vocabulary_knows_the_language_of_a_plain_task() -> None:
    import seqio
    import tensorflow as tf

    from maestro_jax.data.vocabulary_sampling import text_sources

    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices(
            {"text": TEXTS, "language": [LANGUAGES.index("sl")] * UTTERANCES}
        )

    seqio.TaskRegistry.add(
        "plain_text",
        source=seqio.FunctionDataSource(dataset, ["train"], {"train": UTTERANCES}),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={
            "text": seqio.Feature(seqio.ByteVocabulary(0), add_eos=False),
            "language": seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False, rank=0),
        },
    )
    [source] = text_sources(["plain_text"])
    assert (source.language, source.sentences) == ("sl", UTTERANCES)
    assert list(source.read(2)) == [TEXTS[0], TEXTS[32]]


def test_a_task_may_say_nothing_of_its_language(tmp_path) -> None:
    import seqio

    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.stream_tasks import stream_of

    name = register()
    plain = seqio.TaskRegistry.get(name)
    features = {key: plain.output_features[key] for key in ("audio", "text")}
    without = [
        lambda dataset: dataset.map(lambda example: {k: example[k] for k in features}),
        *plain.preprocessors,
    ]
    seqio.TaskRegistry.remove(name)
    task = seqio.TaskRegistry.add(
        name, source=plain.source, preprocessors=without, output_features=features
    )
    assert stream_of(task) == "paired"
    stream = StreamConfig(mixture=name, batch_size=4, audio_samples=100, text_tokens=40)
    with StreamLoader({"paired": stream}, split="test", seed=1) as loader:
        assert next(loader)["paired"]["language"].tolist() == [-1] * 4
    [evaluation] = evaluated(tmp_path, name).evaluations
    assert [row.language for row in evaluation.rows] == ["und"]


def test_references_may_be_tokens_alone(tmp_path, caplog) -> None:
    [evaluation] = evaluated(tmp_path, register(keep_text=False)).evaluations
    assert evaluation.rows[0].scores["wer"].value == pytest.approx(100 * 8 / 128)
    assert evaluation.rows[0].scores["wer"].counts["words"] == 128
    assert "keeps no text_pretokenized" in caplog.text


def test_tasks_of_a_mixture_are_test_sets_of_their_own(tmp_path) -> None:
    import seqio

    names = [register(), register(ids=np.arange(64)), register(ids=np.arange(64))]
    seqio.MixtureRegistry.add("plain_mixture", [(name, 1.0) for name in names])
    report = evaluated(tmp_path, "plain_mixture")
    assert [one.name for one in report.evaluations] == [
        f"plain_mixture.{name}.test" for name in names
    ]
    assert {one.utterances for one in report.evaluations} == {64}
