"""A quickstart on made-up recordings: what it writes, what it keeps, and from end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from quickstart_figures import LAPTOP, READERS

from maestro_jax.batches import Mixture
from maestro_jax.data.corpora.speech_directory import read_speech_directory
from maestro_jax.data.corpora.speech_entries import Entry
from maestro_jax.errors import UserError
from maestro_jax.experiments.quickstart import run as quickstart
from maestro_jax.experiments.quickstart import scoring
from maestro_jax.experiments.quickstart.prepared import (
    Tasks,
    read_lines,
    write_lm_texts,
    write_manifests,
)
from maestro_jax.experiments.quickstart.rules import choose
from maestro_jax.experiments.quickstart.run import Request, run_quickstart
from maestro_jax.experiments.quickstart.survey import Measured, Survey, judge
from maestro_jax.gin_utils import gin_config
from maestro_jax.inference.search_config import SearchConfig

WORDS = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben")


def tone(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * rng.uniform(100, 400) * np.arange(int(seconds * 16_000)) / 16_000)
    return 0.1 * wave + 0.001 * rng.standard_normal(wave.shape)


def made_corpus(root: Path, *, speakers: int = 6, each: int = 5) -> Path:
    """Writes tones as a manifest without splits, with translations, bad recordings and a text."""
    lines = []
    for speaker in range(speakers):
        for number in range(each):
            name = f"{speaker}_{number}"
            words = [WORDS[(speaker + number * k) % len(WORDS)] for k in (1, 3, 5)]
            (root / "audio").mkdir(parents=True, exist_ok=True)
            soundfile.write(root / f"audio/{name}.wav", tone(1.5 + 0.2 * number, speaker), 16_000)
            line = {"id": name, "audio": f"audio/{name}.wav", "text": " ".join(words)}
            line |= {"speaker": f"s{speaker}", "language": "de", "translation": f"No. {number}"}
            lines.append(line)
    soundfile.write(root / "audio/silent.wav", np.zeros(32_000), 16_000)
    (root / "audio/broken.wav").write_bytes(b"RIFF and no more")
    for name in ("silent", "broken", "lost"):
        lines.append({**lines[0], "id": name, "audio": f"audio/{name}.wav"})
    (root / "speech").mkdir()
    soundfile.write(root / "speech/a.wav", tone(2.0, 99), 16_000)
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "more.txt").write_text("neun zehn elf\nzwölf\n", encoding="utf-8")
    return root


def test_lines_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"audio": "a.wav", "text": "ja"}\nno JSON\n')
    directory = read_speech_directory(tmp_path)
    summary = quickstart.bad_summary(directory, Survey(heard=(), bad=()))
    assert summary == "no bad recordings; 1 line or file that cannot be used: 1 bad row"


@pytest.mark.parametrize(
    # A name of a file that is no UTF-8; line separators of Unicode.
    ("audio", "text"),
    [("b\udcff.wav", "one"), ("b.wav", "one\u2028two\x85three")],
)
def test_manifests_keep_every_text(tmp_path: Path, audio: str, text: str) -> None:
    entry = Entry(id="a", audio=audio, text=text, language="en")
    write_manifests(tmp_path, [(entry, "test")])
    write_manifests(tmp_path, [(entry, "train"), (dataclasses.replace(entry, text=""), "train")])
    [line] = read_lines(tmp_path / "train.jsonl")
    assert line == {"id": "a", "audio": str(Path.cwd() / audio), "text": text, "language": "en"}
    assert len(read_lines(tmp_path / "unpaired" / "speech.jsonl")) == 1
    # Nothing is left of an earlier start.
    assert read_lines(tmp_path / "test.jsonl") == []
    written = write_lm_texts(tmp_path, tmp_path)["recognise"].read_text()
    assert written == " ".join(text.split()) + "\n"


def test_languages_without_a_set_are_not_scored_on_it() -> None:
    splits = {"a": frozenset(("train", "test")), "b": frozenset(("train",)), "c": {"train", "test"}}
    tasks = Tasks(speech=(), paired=("a", "b", "c"), text=(), st=("b",), splits=splits)
    assert tasks.mixture("paired") == Mixture(name="quickstart_all_paired", tasks=("a", "b", "c"))
    assert tasks.mixture("paired", "test") == Mixture(
        name="quickstart_all_paired_test", tasks=("a", "c")
    )
    assert tasks.mixture("paired", "validation") is None
    assert (tasks.mixture("st"), tasks.mixture("st", "test")) == ("b", None)


def heard_here(entries: Sequence[Entry], cache: Path, processes: object) -> Survey:
    """Takes every recording to be three seconds of good speech, or a minute."""
    return judge(
        entries,
        [
            Measured(60.0 if "long" in entry.audio else 3.0, -20.0, 0.0, ())
            if entry.audio
            else None
            for entry in entries
        ],
    )


def look(source: Path, output: Path, **options: object) -> None:
    """Begins a quickstart, up to the manifests."""
    one = quickstart.Quickstart(Request(source=source, output=output, **options))
    one._load()
    if "figures" not in one._state:
        one._look()


LINE = {"audio": "a.wav", "text": "ja", "language": "de"}


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([{**LINE, "language": "German"}], {}, "a.wav.*unknown language 'German'"),
        ([LINE], {"language": "xx"}, "unknown language 'xx'"),
        ([{**LINE, "translation": "yes", "language": "en"}], {}, "--target_language CODE"),
        (
            [
                {**LINE, "translation": "yes", "target_lang": lang, "audio": lang}
                for lang in "en fr".split()
            ],
            {},
            "translations into en, fr",
        ),
        ([{**LINE, "split": "test"}], {}, "only 1 of the test set"),
        ([{**LINE, "audio": "long.wav"}], {}, "1 too long; the first: too long, 60 s.*offset"),
        ([{**LINE, "text": ""}], {}, "1 recordings without one"),
        ([{"sound": "a.wav"}], {}, "it has id, sound; it needs audio and text"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[dict],
    options: dict,
    message: str,
) -> None:
    monkeypatch.setattr(quickstart, "survey", heard_here)
    content = "".join(json.dumps({"id": "a.wav", **line}) + "\n" for line in lines)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all.jsonl").write_text(content)
    (tmp_path / "data" / "a.wav").touch()
    with pytest.raises(UserError, match=message):
        look(tmp_path / "data", tmp_path / "output", **options)


def test_outputs_of_something_else_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "survey", heard_here)
    source, output = tmp_path / "data", tmp_path / "output"
    with pytest.raises(UserError, match="not a directory"):
        look(source, output)
    assert not output.exists()
    source.mkdir()
    lines = [{**LINE, "audio": f"{number}.wav", "text": f"{number}"} for number in range(20)]
    manifest = source / "all.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines) + "broken\n")
    with pytest.raises(UserError, match="is the directory of the recordings"):
        look(source, source)
    with pytest.raises(UserError, match="is a file"):
        look(source, manifest)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_anna.txt").touch()
    with pytest.raises(UserError, match="has other files"):
        look(source, tmp_path / "letters")

    monkeypatch.setattr(quickstart, "figures_of", lambda *_: READERS)
    look(source, output)
    assert "all.jsonl:21: bad row" in capsys.readouterr().out
    look(source, output)
    assert "continuing" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with language unnamed, and not de"):
        look(source, output, language="de")
    with pytest.raises(UserError, match="made with source"):
        look(tmp_path / "letters", output)
    manifest.write_text(manifest.read_text().replace('"19"', '"neunzehn"'))
    with pytest.raises(UserError, match="has changed since"):
        look(source, output)
    record = output / "quickstart.json"
    record.write_text(record.read_text()[:100])
    with pytest.raises(UserError, match="damaged or of another version"):
        look(source, output)


@pytest.mark.parametrize("greedy_score", [14.0, 16.0])
def test_the_search_that_is_best_on_validation_is_tested(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    greedy_score: float,
) -> None:
    evaluated: list[tuple[str, str | None, SearchConfig | None]] = []
    tuned: list[tuple[str | None, int]] = []

    def evaluate_run(run: object, *, split: str, step: str | None, search=None, **_: object):
        evaluated.append((split, step, search))
        return types.SimpleNamespace(text=lambda: "CER 12\n", as_dict=lambda: [{"cer": 12}])

    def tune_run(run: object, *, search: SearchConfig, metric: str, **options: object):
        tuned.append((search.decoder, search.beam_size))
        assert options.get("split", "validation") == "validation" and metric == "cer"
        score = {"transducer": 20.0, "ctc": 15.0}[search.decoder]
        if search.beam_size == 1:
            score += greedy_score - 15.0
        else:
            search = dataclasses.replace(search, lm_weight=0.7)
        best = types.SimpleNamespace(score=score, search=search)
        return types.SimpleNamespace(best=best, metric=metric)

    written: list[object] = []
    decoders = types.SimpleNamespace(decoders=("transducer", "ctc"))
    for name, value in {
        "evaluate_run": evaluate_run,
        "tune_run": tune_run,
        "write_search": lambda tuning, model_dir: written.append(tuning.best.search.decoder),
        "write_report": lambda model_dir: None,
        "find_step": lambda model_dir, step: model_dir,
    }.items():
        monkeypatch.setattr(scoring, name, value)
    monkeypatch.setattr(
        quickstart.gin_config,
        "load_run",
        lambda model_dir: types.SimpleNamespace(objective=decoders),
    )
    one = quickstart.Quickstart(Request(source=tmp_path / "voices", output=tmp_path, budget=100.0))
    one._state |= {"layout": "kaldi", "bad": "no bad recordings", "done": ["pretrain"]}
    (tmp_path / "manifests").mkdir()
    line = {"audio": "a.wav", "text": "Ja!", "language": "de"}
    (tmp_path / "manifests" / "train.jsonl").write_text(json.dumps(line) + "\n")
    tasks = Tasks(speech=(), paired=("quickstart_paired_de",), text=(), st=())
    tasks = dataclasses.replace(
        tasks, splits={"quickstart_paired_de": frozenset(("train", "validation", "test"))}
    )
    one._evaluate(["recognise"], choose(READERS, 100.0, LAPTOP), READERS, tasks)

    assert tuned == [("transducer", 1), ("ctc", 1), ("transducer", 4), ("ctc", 16)]
    assert written == ["ctc"]
    [(split, step, greedy), (also, _, chosen)] = evaluated
    assert (split, also, step, greedy) == ("test", "test", "best", None)
    if greedy_score < 15.0:
        assert chosen == SearchConfig(decoder="ctc")
    else:
        assert (chosen.decoder, chosen.lm_weight, chosen.beam_size) == ("ctc", 0.7, 16)
        assert Path(chosen.lm_text).read_text() == "ja\n"
    page = (tmp_path / "quickstart.md").read_text()
    assert "layout kaldi" in page and "CER 12" in page and "SpecAugment" in page
    assert "maestro transcribe" in capsys.readouterr().out


@pytest.mark.extended
def test_a_plan_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = made_corpus(tmp_path / "corpus"), tmp_path / "output"
    request = Request(
        source=source, output=output, budget=600.0, plan_only=True, explain=True, workers=1
    )
    run_quickstart(request)
    printed = capsys.readouterr().out
    assert "3 bad recordings" in printed and "rule  " in printed
    assert "fine-tuning for speech translation" in printed
    rows = [row.split("\t") for row in (output / "bad_recordings.tsv").read_text().splitlines()]
    assert {(row[0], row[3]) for row in rows[1:]} == {
        ("silent audio", "silent"),
        ("unreadable audio", "broken"),
        ("missing audio", "lost"),
    }
    lines = {
        split: read_lines(output / "manifests" / f"{split}.jsonl")
        for split in ("train", "validation", "test")
    }
    tested = {line["speaker"] for line in lines["test"]}
    trained = {line["speaker"] for line in lines["train"] + lines["validation"]}
    # Of six speakers, one more is too much for a validation set: it has sentences of its own.
    assert not tested & trained and len(tested | trained) == 6
    known = {line["text"] for line in lines["train"]}
    assert lines["validation"] and known.isdisjoint(line["text"] for line in lines["validation"])

    runs = {
        name: gin_config.parse_and_build([str(output / "gin" / f"{name}.gin")])
        for name in ("pretrain", "finetune", "translate")
    }
    assert set(runs["pretrain"].streams) == {"speech", "paired", "text", "st"}
    assert set(runs["finetune"].streams) == {"paired"}
    assert runs["translate"].init_from == str(output / "recognition")
    texts = write_lm_texts(output / "manifests", output / "texts")
    assert "neun zehn elf" in texts["recognise"].read_text(encoding="utf-8").splitlines()
    test = (output / "manifests" / "test.jsonl").read_text()
    trained = texts["recognise"].read_text(encoding="utf-8").splitlines()
    assert len(trained) == 2 + len((output / "manifests/train.jsonl").read_text().splitlines())
    assert test

    # The second call looks at nothing again, and keeps what the user has edited.
    def refuse(*arguments: object) -> None:
        raise AssertionError("looked again")

    monkeypatch.setattr(quickstart, "survey", refuse)
    edited = output / "gin" / "finetune.gin"
    edited.write_text(edited.read_text() + "\nSEED = 3\n")
    before = (output / "gin" / "pretrain.gin").read_text()
    run_quickstart(request)
    assert edited.read_text().endswith("SEED = 3\n")
    assert (output / "gin" / "pretrain.gin").read_text() == before
    assert "continuing in" in capsys.readouterr().out


# Minutes of compilation: `make test-slow` runs it.
@pytest.mark.slow
def test_from_synthesised_speech_to_models_and_a_restart(tmp_path: Path) -> None:
    from maestro_jax.minivox.speech import record, speakers

    source, output = tmp_path / "corpus", tmp_path / "output"
    source.mkdir()
    lines = []
    rng = np.random.default_rng(0)
    for index, speaker in enumerate(speakers("train")[:12]):
        for number in range(12):
            picked = [int(each) for each in rng.integers(len(WORDS), size=3)]
            text = " ".join(WORDS[each] for each in picked)
            spoken = record(text, "de", variant=speaker.variant, pitch=speaker.pitch, rng=rng)
            name = f"{index}_{number}.wav"
            soundfile.write(source / name, spoken.audio, 16_000)
            line = {"audio": name, "text": text, "language": "de", "speaker": speaker.name}
            lines.append({**line, "translation": " ".join(map(str, picked))})
    (source / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "maestro_jax.cli.main", "quickstart", str(source)]
    command += ["--budget", "4m", "--output_dir", str(output), "--explain"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "x")}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    scores = json.loads((output / "quickstart.json").read_text())["scores"]
    assert set(scores) == {"recognise", "translate"}
    # A model that has learned nothing writes nothing: 100%.
    rows = [one[0]["rows"][0] for one in scores["recognise"].values()]
    assert min(row["cer"] for row in rows) < 90
    for name in ("pretrained", "recognition", "translation"):
        assert (output / name / "report.html").is_file()
    assert (output / "recognition" / "search.gin").is_file()

    checkpoints = sorted(output.glob("*/checkpoints/*/state"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
