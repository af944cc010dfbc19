"""Every corpus from its official layout through `maestro prepare` and training to transcripts."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import layouts_common_voice
import numpy as np
import pytest
import soundfile
from etils import epath
from layouts_all import ISSUES, LAYOUTS, REFERENCES
from narrow_model import NARROW
from spoken import InProcess

from maestro_jax.batches import SAMPLE_RATE
from maestro_jax.cli.main import main
from maestro_jax.data.corpora.corpus import corpus_names
from maestro_jax.evaluation.predictions import read_predictions
from maestro_jax.evaluation.run_evaluation import evaluate_run
from maestro_jax.files import write_atomically
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.vocabularies import BYTE_MODEL, ByteVocabulary
from maestro_jax.training.run import TrainRun

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

STREAMS = ("speech", "paired", "text", "mt", "st")
STEPS, BATCH = 8, 32
DRAWN = STEPS * BATCH
"""Rows of each stream: a whole block of the mixture, in which tasks have exact shares."""

SAMPLES, TOKENS = 3 * SAMPLE_RATE, 64
DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the commands left.

    Attributes:
        source: The directories of the corpora, by their names.
        root: The data root.
        model_dir: Of the model.
        run: That trained it.
        batches: That it was trained on.
        printed: By corpus, the closing table of `maestro prepare`.
        tasks: By stream, the tasks of which something is prepared.
    """

    source: Path
    root: Path
    model_dir: Path
    run: TrainRun
    batches: list[dict[str, dict[str, np.ndarray]]]
    printed: dict[str, str]
    tasks: dict[str, list[str]]

    def examples(self, task: str) -> dict[str, int]:
        """The examples of the splits of a task that has any."""
        from maestro_jax.data.data_dir import data_scope
        from maestro_jax.data.task_registry import get_task_or_mixture
        from maestro_jax.errors import UserError

        found = {}
        with data_scope(self.root):
            task = get_task_or_mixture(task)
            for split in task.splits:
                # A split that the corpus may have, but not here.
                with contextlib.suppress(UserError):
                    found[split] = task.num_input_examples(split)
        return found

    def records(self, task: str, split: str) -> list[dict[str, Any]]:
        """The records behind a split of a task, read without seqio, TensorFlow or the loader."""
        import tensorflow_datasets as tfds

        from maestro_jax.data.task_registry import get_task_or_mixture

        source = get_task_or_mixture(task).source
        directory = self.root / source._name / "1.0.0"
        found = []
        for part in source._split_names[split].split("+"):
            data = tfds.builder_from_directory(directory).as_data_source(part)
            found += [data[number] for number in range(len(data))]
        return [
            {name: v.decode() if isinstance(v, bytes) else v for name, v in record.items()}
            for record in found
        ]

    def summaries(self) -> dict[str, dict[str, Any]]:
        """What `maestro prepare` wrote down, by corpus and config."""
        return {
            str(path.parent.parent.relative_to(self.root)): json.loads(path.read_text())
            for path in sorted(self.root.glob("*/*/1.0.0/summary.json"))
        }


def prepare_all(source: Path, root: Path) -> dict[str, str]:
    """Lays all corpora out and runs `maestro prepare` on each."""
    printed = {}
    for corpus, lay_out in LAYOUTS.items():
        directory = lay_out(source / corpus)
        directory = directory if isinstance(directory, Path) else source / corpus
        out, errors = io.StringIO(), io.StringIO()
        command = ["prepare", corpus, "--source_dir", str(directory), "--data_dir", str(root)]
        # Xhosa, which both layouts have, has no shipped tasks.
        if languages := {"fleurs": "de,zh", "text_files": "de"}.get(corpus):
            command += ["--languages", languages]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", errors)
            if corpus != "common_voice":
                # One corpus is read by processes, each of which takes seconds to start.
                patch.setattr("maestro_jax.data.processes.Processes", InProcess)
            with contextlib.redirect_stdout(out):
                code = main([*command, "--workers", "1"])
        if corpus == "common_voice":
            # The layout has languages with nothing but an empty table, too.
            assert code == 2 and "no utterance of eo, zh, zh_tw" in errors.getvalue()
        else:
            assert code == 0, errors.getvalue()
        printed[corpus] = out.getvalue()
    return printed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import seqio

    from maestro_jax.data.task_registry import list_tasks
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.training.batch_feed import TaskBatches
    from maestro_jax.training.trainer import train

    source = tmp_path_factory.mktemp("corpora")
    root = tmp_path_factory.mktemp("data")
    model_dir = tmp_path_factory.mktemp("model")
    write_atomically(root / "vocabularies" / "multilingual.model", BYTE_MODEL)
    printed = prepare_all(source, root)

    tasks: dict[str, list[str]] = collections.defaultdict(list)
    lines = ["from __gin__ import dynamic_registration", "from maestro_jax.data import streams"]
    for row in list_tasks(str(root)):
        if row.kind == "task" and row.ready:
            tasks[row.stream].append(row.name)
    # One mixture a stream, in which all tasks are drawn equally often.
    for stream in STREAMS:
        name, config = f"everything_{stream}", f"{stream}/streams.StreamConfig"
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        lines += [f'{config}.mixture = "{name}"', f"{config}.batch_size = {BATCH}"]
    file = tmp_path_factory.mktemp("gin") / "everything.gin"
    file.write_text("\n".join(lines) + "\n")
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin"]
    files += ["data/minivox_small.gin", str(file)]
    bindings = NARROW | {
        "VOCAB_SIZE": "259",
        "DROPOUT": "0.0",
        "STEPS": str(STEPS),
        "DIAGNOSTICS_EVERY": "0",
        "AUDIO_SAMPLES": str(SAMPLES),
        "TOKENS": str(TOKENS),
    }
    run = gin_config.parse_and_build(files, bindings)
    batches: list[dict[str, dict[str, np.ndarray]]] = []
    result = Trained(source, root, model_dir, run, batches, printed, dict(tasks))
    for stream in STREAMS:
        training = [(task, 1.0) for task in tasks[stream] if result.examples(task).get("train")]
        seqio.MixtureRegistry.add(f"everything_{stream}", training)

    def kept(start_step: int) -> Iterator[Any]:
        """The batches that a run gets by default; they are kept to be looked at."""
        source = TaskBatches(run, run.partitioning.mesh(), epath.Path(model_dir), root)
        opened = source(start_step)
        source.save()
        for batch in opened:
            batches.append(batch)
            yield batch

    train(run, model_dir=model_dir, data_dir=root, batches=kept)
    return result


@pytest.fixture(scope="module")
def transcriber(trained: Trained) -> Transcriber:
    """The model as it was written to disk."""
    return Transcriber.from_checkpoint(trained.model_dir, trained.run)


def test_no_corpus_is_forgotten(trained: Trained) -> None:
    # A manifest has a name of its own and tasks of its own: the corpora of SpeechStew stand for it.
    # So have Parquet files, which are one more layout of CoVoST-2 and VoxPopuli.
    assert set(LAYOUTS) == set(corpus_names()) - {"manifest", "parquet"}
    assert set(trained.tasks) == set(STREAMS)
    names = [name for stream in STREAMS for name in trained.tasks[stream]]
    assert set(LAYOUTS) == {c for c in LAYOUTS if any(n.startswith(f"{c}_") for n in names)}
    scored = {name for stream in ("paired", "st", "mt") for name in trained.tasks[stream]}
    assert set(REFERENCES) == scored


def test_whatever_is_wrong_is_counted_and_told(trained: Trained) -> None:
    found = {}
    for name, summary in trained.summaries().items():
        corpus, config = name.split("/")
        assert f"{corpus}/{config} " in trained.printed[corpus]
        counts = {split["split"]: split["issues"] for split in summary["splits"]}
        counts[""] = summary["lines"]
        found |= {(name, split): issues for split, issues in counts.items() if issues}
        path = trained.root / name / "1.0.0" / "problems.tsv"
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        written = collections.Counter((line["split"], line["kind"]) for line in lines)
        assert written == {(s, k): n for s, kinds in counts.items() for k, n in kinds.items()}
        assert all(line["item"] for line in lines)
        for kinds in counts.values():
            for kind, count in kinds.items():
                assert f"{count} {kind}" in trained.printed[corpus]
    assert found == ISSUES


def test_the_known_quirks_are_among_it(trained: Trained) -> None:
    kinds = collections.defaultdict(set)
    for (name, _), issues in ISSUES.items():
        for kind in issues:
            kinds[kind].add(name.split("/")[0])
    for kind in ("empty text", "missing audio", "duplicate id", "unreadable audio"):
        for corpus in ("common_voice", "fleurs", "mls", "librispeech", "voxpopuli"):
            assert corpus in kinds[kind], (kind, corpus)

    # Quotation marks in tables, with a partner and without: no line swallows the next one.
    for task, split, texts in (
        ("common_voice_paired_de", "train", ['Das ist "gut", ja!', '"Eins zwei.']),
        ("voxpopuli_paired_de", "train", ['Drei "vier', '"Sieben"']),
        ("voxpopuli_paired_sl", "train", ['"Štiri.']),
        ("fleurs_paired_de", "train", ['Das "Ei ist rund.']),
        ("covost2_st_de_en", "train", ['Das ist "gut", ja!']),
    ):
        raw = [record["raw_text"] for record in trained.records(task, split)]
        assert set(texts) <= set(raw)
    # Annotations between pipes, and what the pipe in one of them does.
    [table] = (trained.source / "voxpopuli").glob("transcribed_data/sl/*.gz")
    assert table.name == "asr_sl.tsv.gz"
    assert ISSUES["voxpopuli/sl", ""] == {"bad row": 1}
    sizes = trained.examples("voxpopuli_paired_sl")
    assert sizes == {"train": 2, "validation": 1, "test": 1}

    # Clips at 48 kHz with a variable bit rate, which LAME says in the first frame.
    clip = next(iter(layouts_common_voice.GERMAN))
    [path] = (trained.source / "common_voice").glob(f"*/de/clips/{clip}")
    told = soundfile.info(path)
    assert (told.samplerate, told.subtype) == (48_000, "MPEG_LAYER_III")
    assert b"Xing" in path.read_bytes()[:200]
    [record] = (
        r for r in trained.records("common_voice_paired_de", "train") if r["id"] == path.stem
    )
    assert len(record["audio"]) == pytest.approx(told.frames / 3, abs=1)


def test_every_step_was_a_step(trained: Trained) -> None:
    lines = (trained.model_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert metrics[-1]["skipped_steps"] == 0
    assert all(math.isfinite(line["loss"]) for line in metrics)
    assert len(trained.batches) == STEPS
    assert all(set(batch) == set(STREAMS) for batch in trained.batches)


Content = tuple[Any, ...]


def contents_of_rows(stream: str, features: dict[str, np.ndarray]) -> list[Content]:
    """What each row says: languages, texts, and the bytes of its audio."""
    rows = []
    for row in range(len(features["language"])):
        content: list[Any] = [LANGUAGES[features["language"][row]]]
        if "target_language" in features:
            content.append(LANGUAGES[features["target_language"][row]])
        for name in ("text", "translation"):
            if name in features:
                ids = features[name][row, : features[f"{name}_length"][row]]
                content.append(ByteVocabulary().decode(ids.tolist()))
        if "audio" in features:
            content.append(features["audio"][row, : features["audio_length"][row]].tobytes())
        rows.append(tuple(content))
    return rows


def content_of_record(stream: str, record: dict[str, Any], target: str) -> Content:
    """What the row of a record should say."""
    content = [record["language"]]
    if stream in ("mt", "st"):
        content.append(target)
    if stream in ("paired", "text", "mt"):
        content.append(record["text"])
    if stream in ("mt", "st"):
        content.append(record["translation"])
    if stream in ("speech", "paired", "st"):
        content.append(np.asarray(record["audio"], np.int16).tobytes())
    return tuple(content)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_utterance_of_every_task_was_trained_on(trained: Trained, stream: str) -> None:
    """Each task has its share of the rows, and each of its utterances its share of the task's."""
    found: collections.Counter[Content] = collections.Counter()
    for batch in trained.batches:
        found.update(contents_of_rows(stream, batch[stream]))
    assert found.total() == DRAWN

    training = [task for task in trained.tasks[stream] if trained.examples(task).get("train")]
    least, most = collections.Counter(), collections.Counter()
    for task in training:
        records = trained.records(task, "train")
        target = task.rpartition("_")[2]
        for record in records:
            content = content_of_record(stream, record, target)
            # To within an example, of which an epoch has every one once.
            least[content] += (DRAWN // len(training) - 1) // len(records)
            most[content] += -(-(DRAWN // len(training) + 2) // len(records))
    if stream == "speech":
        found, least, most = (cropped(counts, most) for counts in (found, least, most))
    assert set(found) == set(most)
    for content, count in found.items():
        assert 1 <= least[content] <= count <= most[content], content[:3]


def cropped(
    counts: collections.Counter[Content], whole: collections.Counter[Content]
) -> collections.Counter[Content]:
    """The counts with one entry a language for all audio that is too long for a row.

    A window of such a recording fills its row. Since the same words are read again and again in
    these, it may be of any.
    """
    long = [content for content in whole if len(content[-1]) > 2 * SAMPLES]
    found: collections.Counter[Content] = collections.Counter()
    for (language, audio), count in counts.items():
        if len(audio) >= 2 * SAMPLES:
            window = audio[: 2 * SAMPLES]
            assert any(language == other and window in recording for other, recording in long)
            audio = b"cropped"
        found[language, audio] += count
    return found


@pytest.mark.parametrize("task", REFERENCES)
def test_decoding(trained: Trained, transcriber: Transcriber, task: str) -> None:
    sizes = trained.examples(task)
    split = "test" if sizes.get("test") else "train"
    records = trained.records(task, split)
    # Where it is one split of the corpus, `maestro prepare` has counted it.
    assert sizes[split] == len(records) == len(REFERENCES[task])
    report = evaluate_run(
        trained.run,
        model_dir=trained.model_dir,
        data_dir=trained.root,
        tasks=(task,),
        split=split,
        transcriber=transcriber,
    )
    [evaluation] = report.evaluations
    stem = report.directory / f"{task}.{split}"
    predictions = read_predictions(stem.with_name(f"{stem.name}.hypotheses.jsonl"))
    assert sorted(p.id for p in predictions) == sorted(record["id"] for record in records)
    assert sorted(p.reference for p in predictions) == sorted(REFERENCES[task])
    assert evaluation.utterances == len(records) and evaluation.repeats == 0

    translates = "_st_" in task or "_mt_" in task
    target = task.rpartition("_")[2] if translates else ""
    direction = "-".join(code for code in (records[0]["language"], target) if code)
    assert [row.direction for row in evaluation.rows] == [direction]
    table = stem.with_name(f"{stem.name}.md").read_text()
    assert re.search(rf"^\| {direction} *\|", table, re.MULTILINE)
    [row] = json.loads(stem.with_name(f"{stem.name}.json").read_text())["rows"]
    assert (row["direction"], row["utterances"]) == (direction, len(records))
    # A fixture is smaller than what was published, and its scores are marked. Where nothing was
    # published, its own tables say how much there is.
    if row["expected_is_published"]:
        assert row["expected"] > len(records) and row["complete"] is False
    elif row["expected"] is not None:
        left_out = sum(row["left_out"].values())
        assert len(records) <= row["expected"] <= len(records) + left_out
        assert row["complete"] is (row["expected"] == len(records))

    # Alone, every utterance gets the same hypothesis.
    hypotheses = {p.id: p.hypothesis for p in predictions}
    for record in records:
        if "_mt_" in task:
            heard = translate(transcriber, record["text"], record["language"], target)
        else:
            heard = decode(transcriber, np.asarray(record["audio"], np.int16), target)
        assert heard == [hypotheses[record["id"]]]


def test_corpora_of_a_mixture_have_tables_of_their_own(
    trained: Trained, transcriber: Transcriber
) -> None:
    from maestro_jax.data.task_registry import add_language_mixture

    # All three have English; two have the same ids, for those are numbers of lines.
    tasks = ["ami_paired_en", "wsj_paired_en", "covost2_paired_en_de"]
    add_language_mixture("three_in_english", tasks)
    report = evaluate_run(
        trained.run,
        model_dir=trained.model_dir,
        data_dir=trained.root,
        tasks=("three_in_english",),
        transcriber=transcriber,
    )
    found = {
        e.name: [(row.direction, row.utterances) for row in e.rows] for e in report.evaluations
    }
    assert found == {f"three_in_english.{c}.test": [("en", 1)] for c in ("ami", "covost2", "wsj")}


def decode(transcriber: Transcriber, audio: np.ndarray, target: str) -> list[str]:
    """What is heard in an utterance that is alone in a batch."""
    features = {
        "audio": np.zeros((DEVICES, SAMPLES), np.int16),
        "audio_length": np.zeros(DEVICES, np.int32),
    }
    features["audio"][0, : len(audio)] = audio
    features["audio_length"][0] = len(audio)
    return transcriber.decode(features, target or None)[0][:1]


def translate(transcriber: Transcriber, text: str, language: str, target: str) -> list[str]:
    """The translation of a text that is alone in a batch."""
    ids = ByteVocabulary().encode(text)
    features = {
        "text": np.zeros((DEVICES, TOKENS), np.int32),
        "text_length": np.zeros(DEVICES, np.int32),
        "language": np.zeros(DEVICES, np.int32),
    }
    features["text"][0, : len(ids)] = ids
    features["text_length"][0] = len(ids)
    features["language"][0] = LANGUAGES.index(language)
    hypotheses = transcriber.search_text(features, target)
    ids = hypotheses.tokens[0, 0, : hypotheses.lengths[0, 0]]
    return [transcriber.vocabulary.decode(ids.tolist())]


def test_speech_without_transcripts_is_transcribed(
    trained: Trained, transcriber: Transcriber
) -> None:
    for task in trained.tasks["speech"]:
        record = trained.records(task, "train")[0]
        samples = np.asarray(record["audio"], np.int16) / 32768.0
        [heard] = transcriber.transcribe([samples])
        assert heard.seconds == pytest.approx(len(samples) / SAMPLE_RATE)
        assert heard.segments == len(heard.spans) >= 1
        assert all(0 < end - start <= SAMPLES / SAMPLE_RATE for start, end in heard.spans)
        assert math.isfinite(heard.score)
