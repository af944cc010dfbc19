"""`maestro eval` in several processes gives what one process gives, and survives their deaths."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from minivox_layouts import covost2, spoken, voxpopuli
from random_model import write_random_model
from spoken import InProcess

from maestro_jax.cli.main import main
from maestro_jax.text.vocabularies import train_sentencepiece

# Each evaluation starts up to three processes, which import, load and compile. On two busy cores,
# the fixture takes two minutes, a comparison up to one, and a test that kills a process two.
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

VOXPOPULI = {"de": 37, "en": 13, "sl": 101}
COVOST2 = {"de": 41, "sl": 7}
SUITES = {"voxpopuli": VOXPOPULI, "covost2": COVOST2}
"""Sizes of the test sets, which no number of processes or devices divides, by suite."""
SHAPES = {"1 process": (1, 1), "2 processes of 4 devices": (2, 4), "3 processes": (3, 1)}
SEARCHES = {"greedy": (), "beam 4": ("--beam_size", "4")}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model that was never trained and two corpora, prepared from their official layouts.

    Attributes:
        model: The model directory.
        data: The data root, which has no vocabulary: the model has its own.
        programs: Directory of compiled programs.
    """

    model: Path
    data: Path
    programs: Path

    def start(
        self,
        output: Path,
        *options: str,
        processes: int = 1,
        devices: int = 1,
        script: Sequence[str] = ("-m", "maestro_jax.cli.main"),
    ) -> list[subprocess.Popen[str]]:
        """Starts `maestro eval` in some processes, whose logs are files beside the output."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        started = []
        for index in range(processes):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            }
            if processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(index),
                }
            arguments = ["--model_dir", str(self.model), "--data_dir", str(self.data)]
            arguments += ["--output_dir", str(output), *options]
            with log_of(output, index).open("w") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *script, "eval", *arguments],
                        stdout=log,
                        stderr=log,
                        text=True,
                        env=environment,
                    )
                )
        return started

    def evaluate(self, output: Path, *options: str, **shape: int) -> Path:
        """Runs it to its end, and returns the directory of the results."""
        started = self.start(output, *options, **shape)
        codes = [process.wait(timeout=600) for process in started]
        logs = "\n".join(log_of(output, index).read_text() for index in range(len(started)))
        assert codes == [0] * len(started), logs[-5000:]
        return output


def log_of(output: Path, index: int) -> Path:
    return output.with_name(f"{output.name}.{index}.log")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("sharded")
    said = {language: spoken(language, "test", count) for language, count in VOXPOPULI.items()}
    # Longer than any that the model was trained on: it is cut at the pause.
    pause = np.zeros(16_000, np.int16)
    longest = [said["de"][number].audio for number in (0, 1, 2)]
    said["de"][5] = dataclasses.replace(
        said["de"][5], audio=np.concatenate([longest[0], pause, longest[1], pause, longest[2]])
    )
    voxpopuli(root / "vp", {(language, "test"): s for language, s in said.items()}, raw=["sl"])
    translated = {language: spoken(language, "test", count) for language, count in COVOST2.items()}
    covost2(root / "covost", {(language, "test"): s for language, s in translated.items()})
    for corpus, source in (("voxpopuli", "vp"), ("covost2", "covost")):
        command = ["prepare", corpus, "--source_dir", str(root / source), "--workers", "1"]
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
            patch.setattr("maestro_jax.data.processes.Processes", InProcess)
            assert main([*command, "--data_dir", str(root / "data")]) == 0
    texts = [t for one in said["de"] + said["sl"] for t in (one.text, one.translation)]
    vocabulary = train_sentencepiece(texts, root / "letters.model", 64, kind="char")
    model = write_random_model(root / "model", vocabulary)
    return Prepared(model, root / "data", root / "programs")


def predictions_of(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The hypotheses of each test set, as they are written."""
    return {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(directory.glob("*.hypotheses.jsonl"))
    }


def assert_same(found: Path, expected: Path) -> None:
    """Compares all that two evaluations wrote, but for times and dates."""
    assert sorted(path.name for path in found.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    ours, theirs = predictions_of(found), predictions_of(expected)
    assert list(ours) == list(theirs)
    for name in ours:
        assert len(ours[name]) == len(theirs[name])
        for one, other in zip(ours[name], theirs[name], strict=True):
            # Products are summed in another order in batches of another shape.
            assert one.pop("score") == pytest.approx(other.pop("score"), abs=0.05)
            scores = [[word.pop(2) for word in p.get("words", ())] for p in (one, other)]
            np.testing.assert_allclose(*scores, atol=0.05)
            assert one == other
    for path in sorted(found.glob("*.json")):
        ours, theirs = (json.loads((d / path.name).read_text()) for d in (found, expected))
        for changing in ("decoding", "provenance", "score_seconds"):
            ours.pop(changing, None), theirs.pop(changing, None)
        assert ours == theirs, path.name


def options_of(suite: str) -> tuple[str, ...]:
    return ("--suite", suite, "--languages", ",".join(SUITES[suite]))


@pytest.fixture(scope="module")
def alone(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """What one process on one device writes, by suite and search."""
    root = tmp_path_factory.mktemp("alone")
    return {
        (suite, name): prepared.evaluate(
            root / f"{suite}_{name}".replace(" ", "_"), *options_of(suite), *search
        )
        for suite in SUITES
        for name, search in SEARCHES.items()
    }


def the_file(directory: Path, ending: str) -> Path:
    """The only file with an ending."""
    [path] = directory.glob(f"*{ending}")
    return path


def test_the_model_writes_another_text_for_each_utterance(
    alone: dict[tuple[str, str], Path],
) -> None:
    """Else utterances could be mixed up, and no test would notice."""
    written = {}
    for (suite, search), directory in alone.items():
        [found] = predictions_of(directory).values()
        hypotheses = [one["hypothesis"] for one in found]
        assert len(set(hypotheses)) > 0.9 * len(found)
        assert min(map(len, hypotheses)) > 3
        sizes = {code: [p["language"] for p in found].count(code) for code in SUITES[suite]}
        assert sizes == SUITES[suite] and len(found) == sum(sizes.values())
        assert sum(one.get("segments", 1) > 1 for one in found) == (suite == "voxpopuli")
        written[suite, search] = hypotheses
    for suite in SUITES:
        assert written[suite, "greedy"] != written[suite, "beam 4"]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("shape", ["2 processes of 4 devices", "3 processes"])
def test_any_processes_and_devices_write_the_same(
    prepared: Prepared,
    alone: dict[tuple[str, str], Path],
    tmp_path: Path,
    shape: str,
    suite: str,
    search: str,
) -> None:
    processes, devices = SHAPES[shape]
    options = (*options_of(suite), *SEARCHES[search])
    found = prepared.evaluate(tmp_path / "found", *options, processes=processes, devices=devices)
    assert_same(found, alone[suite, search])
    table = json.loads(the_file(found, ".json").read_text())
    assert table["decoding"]["utterances"] == sum(SUITES[suite].values())
    used = table["provenance"]["devices"]
    assert (used["processes"], used["count"]) == (processes, processes * devices)


def test_scores_are_those_of_jiwer_and_of_the_sacrebleu_command(
    alone: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """The model writes letters, and references are normalised: only spaces are to be joined."""
    for (suite, search), directory in alone.items():
        [predictions] = predictions_of(directory).values()
        table = json.loads(the_file(directory, ".json").read_text())
        scores: dict[str, list[float]] = {}
        for row in table["rows"]:
            own = [one for one in predictions if one["language"] == row["language"]]
            references, hypotheses = (
                [" ".join(one[side].split()) for one in own] for side in ("reference", "hypothesis")
            )
            if suite == "voxpopuli":
                found = {"wer": 100 * jiwer.wer(references, hypotheses)}
                found["cer"] = 100 * jiwer.cer(references, hypotheses)
            else:
                found = sacrebleu_command(tmp_path, references, hypotheses)
            for metric, value in found.items():
                assert row[metric] == pytest.approx(value, abs=1e-9), (suite, search, metric)
                scores.setdefault(metric, []).append(value)
        [average] = [each for each in table["averages"] if each["name"] == "all"]
        for metric, values in scores.items():
            assert len(values) == len(SUITES[suite])
            assert average[metric] == pytest.approx(sum(values) / len(values), abs=1e-9)


def sacrebleu_command(
    directory: Path, references: Sequence[str], hypotheses: Sequence[str]
) -> dict[str, float]:
    """BLEU and chrF of files."""
    paths = [directory / "references", directory / "hypotheses"]
    for path, texts in zip(paths, (references, hypotheses), strict=True):
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(paths[0]), "-i", str(paths[1])]
    command += ["-m", "bleu", "chrf", "-w", "10", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bleu, chrf = json.loads(done.stdout)
    return {"bleu": bleu["score"], "chrf": chrf["score"]}


# The command, which takes two seconds more for each batch and writes its parts every second.
_SLOW = """
import sys, time
from maestro_jax.cli import environment
environment.prepare_process()
from maestro_jax.evaluation import decoding, results
results._SECONDS_BETWEEN_PARTS = 1.0
decode_batch = decoding.TestSetDecoder._decode_batch
def slow(self, place):
    time.sleep(2.0)
    yield from decode_batch(self, place)
decoding.TestSetDecoder._decode_batch = slow
from maestro_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_stops_the_others_and_a_restart_goes_on(
    prepared: Prepared, alone: dict[tuple[str, str], Path], tmp_path: Path, victim: int
) -> None:
    output, total = tmp_path / "found", sum(VOXPOPULI.values())
    options = options_of("voxpopuli")
    started = prepared.start(output, *options, processes=3, script=("-c", _SLOW))
    deadline = time.monotonic() + 300
    while len(list(output.glob("*.parts/*.jsonl"))) < 2 and time.monotonic() < deadline:
        assert all(process.poll() is None for process in started), log_of(output, 0).read_text()
        time.sleep(0.1)
    started[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for index in {0, 1, 2} - {victim}:
        assert started[index].wait(timeout=60) == 2
        log = log_of(output, index).read_text()
        *_, last = log.strip().splitlines()
        assert last.startswith("error: ") and f"process {victim} of 3" in last
        assert "the same command goes on where this one stood" in last
        assert "Traceback" not in log
    assert time.monotonic() - killed < 60

    parts = output.glob("*.parts/*.jsonl")
    before = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in parts)
    assert 0 < before < total
    # With another number of processes, to make it harder.
    prepared.evaluate(output, *options, processes=2)
    assert f"{before} utterances were decoded before" in log_of(output, 0).read_text()
    table = json.loads(the_file(output, ".json").read_text())
    assert table["decoding"]["utterances"] == total - before
    assert {row["direction"]: row["utterances"] for row in table["rows"]} == VOXPOPULI
    # What was killed leaves a directory of its processes, for a while.
    for path in output.glob("processes-*"):
        shutil.rmtree(path)
    assert_same(output, alone["voxpopuli", "greedy"])
