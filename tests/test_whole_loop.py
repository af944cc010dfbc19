"""The whole loop on real audio, as small as it goes: corpus, training, scores, transcripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from narrow_model import NARROW

from maestro_jax.cli.main import main
from maestro_jax.data.data_dir import data_root

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

SMALL = NARROW | {"VOCAB_SIZE": "96", "CHECKPOINT_EVERY": "2"}
STEPS = {"pretrain": 4, "finetune_asr": 2, "finetune_st": 2}
AT_ONCE = {"PAIRED_START_STEP": "0", "TEXT_START_STEP": "0", "TRANSLATION_START_STEP": "0"}


def demo_command(output: Path, steps: dict[str, int], bindings: dict[str, str]) -> list[str]:
    """The demo on MiniVox tiny, some steps a stage, in a process of its own."""
    script = (
        "from maestro_jax.cli import environment\n"
        "environment.prepare_process()\n"
        "environment.enable_compilation_cache()\n"
        "from maestro_jax.experiments import demo\n"
        "import dataclasses\n"
        "recipe = dataclasses.replace(demo.RECIPE, config='tiny', "
        f"data_gin='data/minivox_tiny.gin', bindings={bindings!r}, steps={steps!r})\n"
        f"demo.run_demo({str(output)!r}, {str(data_root())!r}, recipe=recipe)\n"
    )
    return [sys.executable, "-c", script]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user: one CPU device, programs kept between processes."""
    cache = tmp_path_factory.mktemp("xla")
    return {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(cache)}


@pytest.fixture(scope="module")
def demo_output(one_device: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that a whole demo left."""
    output = tmp_path_factory.mktemp("demo")
    command = demo_command(output, STEPS, SMALL | AT_ONCE)
    done = subprocess.run(command, env=one_device, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_the_demo_leaves_tables_pictures_and_a_transcript(demo_output: Path) -> None:
    for stage in ("pretrained", "recognition", "translation"):
        assert (demo_output / stage / "evaluation" / "losses.png").stat().st_size > 5_000
        assert (demo_output / stage / "report.html").stat().st_size > 50_000
    for picture in ("alignment", "durations", "similarity"):
        path = demo_output / "pretrained" / "evaluation" / f"{picture}.png"
        assert path.stat().st_size > 5_000
    [asr] = (demo_output / "recognition" / "evaluation").glob("*-greedy/*.json")
    scores = json.loads(asr.read_text())
    assert [row["utterances"] for row in scores["rows"]] == [4, 4, 4]
    assert asr.with_suffix(".md").read_text().startswith("# ")
    [st] = (demo_output / "translation" / "evaluation").glob("*-greedy/*.json")
    scores = json.loads(st.read_text())
    assert {row["direction"] for row in scores["rows"]} == {"de-en", "sl-en"}
    assert all("tok:13a" in row["bleu_signature"] for row in scores["rows"])
    [with_lm] = (demo_output / "translation" / "evaluation").glob(f"*-lm*/{st.name}")
    assert {row["direction"] for row in json.loads(with_lm.read_text())["rows"]} == {
        "de-en",
        "sl-en",
    }
    assert "de-en" in (demo_output / "translation" / "report.html").read_text()


def test_the_language_models_know_no_test_sentence(demo_output: Path) -> None:
    for stage, name in (("recognition", "transcripts"), ("translation", "english")):
        texts = (demo_output / "texts" / f"{name}.txt").read_text().splitlines()
        [file] = (demo_output / stage / "evaluation").glob("*-greedy/*.hypotheses.jsonl")
        references = [json.loads(line)["reference"] for line in file.read_text().splitlines()]
        assert len(texts) > 100 and len(references) >= 8
        assert not set(references) & set(texts)


def test_a_finished_demo_does_not_start_over(demo_output: Path, one_device: dict[str, str]) -> None:
    checkpoints = sorted(demo_output.glob("*/checkpoints/*/state"))
    assert checkpoints
    before = [path.stat().st_mtime_ns for path in checkpoints]
    metrics = (demo_output / "pretrained" / "metrics.jsonl").read_text()
    command = demo_command(demo_output, STEPS, SMALL | AT_ONCE)
    done = subprocess.run(command, env=one_device, capture_output=True, text=True, check=True)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (demo_output / "pretrained" / "metrics.jsonl").read_text() == metrics
    for expected in ("Reference:", "Hypothesis:", "Translation:", "Figures:", "WER", "BLEU"):
        assert expected in done.stdout


def test_fine_tuning_was_validated(demo_output: Path) -> None:
    for stage, metric in (("recognition", "wer"), ("translation", "bleu")):
        lines = (demo_output / stage / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["validation/loss"] > 0 and last[f"validation/{metric}"] >= 0
        best = json.loads((demo_output / stage / "best_checkpoint.json").read_text())
        assert (best["step"], best["value"]) == (last["step"], last[f"validation/{metric}"])


def test_fine_tuning_began_from_the_pretrained_average(demo_output: Path) -> None:
    from maestro_jax.training.partial_restore import restore_params

    pretrained = restore_params(demo_output / "pretrained", "ema")
    tuned = restore_params(demo_output / "recognition", "params")
    # Two steps at a small learning rate leave the weights close; another start would not be.
    for part in ("decoder", "shared_encoder"):
        a = np.concatenate([np.ravel(x) for x in _leaves(pretrained[part])])
        b = np.concatenate([np.ravel(x) for x in _leaves(tuned[part])])
        assert np.linalg.norm(a - b) < 0.2 * np.linalg.norm(a)
    # The text side is not trained by recognition at all.
    for a, b in zip(_leaves(pretrained["refiner"]), _leaves(tuned["refiner"]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_transcribe_any_file(
    demo_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    samples, rate = soundfile.read(demo_output / "held_out.wav")
    stereo = np.stack([samples, samples], axis=1)
    path = tmp_path / f"speech.{suffix}"
    soundfile.write(path, np.repeat(stereo, 2, axis=0), 2 * rate)
    model = str(demo_output / "recognition")
    assert main(["transcribe", model, str(path), "--json"]) in (None, 0)
    [record] = json.loads(capsys.readouterr().out)
    assert record["seconds"] == pytest.approx(len(samples) / rate, abs=0.1)
    assert isinstance(record["text"], str)


@pytest.mark.parametrize("form", ["table", "json", "textgrid"])
def test_align_a_recording(
    demo_output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    recording, target = demo_output / "held_out.wav", tmp_path / "aligned"
    command = ["align", str(demo_output / "recognition"), str(recording), "one two", "--format"]
    assert main([*command, form]) in (None, 0)
    printed = capsys.readouterr().out
    assert main([*command, form, "--output", str(target)]) in (None, 0)
    assert target.read_text(encoding="utf-8") == printed
    if form == "json":
        record = json.loads(printed)
        assert [word["text"] for word in record["words"]] == ["one", "two"]
        assert record["tokens"][-1]["end"] == pytest.approx(soundfile.info(recording).duration)


def test_evaluate_a_finished_run(demo_output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(demo_output / "translation")
    assert main(["eval", "--model_dir", model, "--split", "validation", "--json"]) in (None, 0)
    [report] = json.loads(capsys.readouterr().out)
    # Nobody has published how many utterances this MiniVox has.
    assert report["utterances"] == 8 and report["complete"] is None


def test_an_interrupted_demo_goes_on(one_device: dict[str, str], tmp_path: Path) -> None:
    """A signal in the middle of pretraining; the second start continues from its checkpoint."""
    curriculum = {"PAIRED_START_STEP": "1", "TEXT_START_STEP": "3", "TRANSLATION_START_STEP": "3"}
    command = demo_command(tmp_path, STEPS | {"pretrain": 60}, SMALL | curriculum)
    process = subprocess.Popen(command, env=one_device, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "pretrained" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    again = subprocess.run(
        command, env=one_device, capture_output=True, text=True, timeout=600, check=True
    )
    assert "continuing from step" in again.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(61))  # 0: the diagnostics before the first step


def test_bad_input_is_one_line(demo_output: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.int16), 16_000)
    text = tmp_path / "notes.wav"
    text.write_text("no audio")
    model = str(demo_output / "recognition")
    run = "runs/demo_pretrain.gin"
    for arguments, told in (
        (["transcribe", model, str(empty)], "empty.wav"),
        (["transcribe", model, str(text)], "notes.wav"),
        (["transcribe", model, str(tmp_path / "absent.wav")], "absent.wav"),
        (["transcribe", str(tmp_path), str(demo_output / "held_out.wav")], "checkpoint"),
        (["eval", "--model_dir", model, "--task", "minivox_tiny_pared"], "minivox_tiny_paired"),
        (["train", "--gin_file", run, "--gin.STEPSS=3", "--model_dir", str(tmp_path)], "'STEPS'"),
        (["train", "--gin_file", "runs/finetune.gin", "--model_dir", str(tmp_path)], "never set"),
    ):
        process = subprocess.run(
            [sys.executable, "-m", "maestro_jax.cli.main", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            check=False,
        )
        lines = [line for line in process.stderr.splitlines() if line.startswith("error:")]
        assert process.returncode == 2, (arguments, process.stderr)
        assert len(lines) == 1 and told in lines[0], (arguments, process.stderr)
        assert "Traceback" not in process.stderr


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
