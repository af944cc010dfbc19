"""A quickstart on made-up recordings: what it writes, what it keeps, and from end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from quickstart_figures import LAPTOP, READERS

from maestro_jax.data.corpora.speech_directory import read_speech_directory
from maestro_jax.experiments.quickstart import run as quickstart
from maestro_jax.experiments.quickstart.prepared import write_lm_texts
from maestro_jax.experiments.quickstart.rules import choose
from maestro_jax.experiments.quickstart.run import Request, run_quickstart
from maestro_jax.experiments.quickstart.survey import Survey
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
    assert summary == "no bad recordings; 1 lines or files that cannot be used: 1 bad row"


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
        monkeypatch.setattr(quickstart, name, value)
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
    one._evaluate(["recognise"], choose(READERS, 100.0, LAPTOP), READERS)

    assert tuned == [("transducer", 1), ("ctc", 1), ("transducer", 4), ("ctc", 4)]
    assert written == ["ctc"]
    [(split, step, greedy), (also, _, chosen)] = evaluated
    assert (split, also, step, greedy) == ("test", "test", "best", None)
    if greedy_score < 15.0:
        assert chosen == SearchConfig(decoder="ctc")
    else:
        assert (chosen.decoder, chosen.lm_weight, chosen.beam_size) == ("ctc", 0.7, 4)
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
    splits: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        lines = (output / "manifests" / f"{split}.jsonl").read_text().splitlines()
        splits[split] = {json.loads(line)["speaker"] for line in lines}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 6

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
    rows = [one[0]["rows"][0]["scores"] for one in scores["recognise"].values()]
    assert min(row["cer"]["value"] for row in rows) < 90
    for name in ("pretrained", "recognition", "translation"):
        assert (output / name / "report.html").is_file()
    assert (output / "recognition" / "search.gin").is_file()

    checkpoints = sorted(output.glob("*/checkpoints/*/state"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
