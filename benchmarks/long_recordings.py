"""Measures the error rate on long recordings, and the memory that they take.

The test utterances of a task are joined to one recording, with silence or noise between them, and
transcribed by a model that was trained on single utterances:

    python benchmarks/long_recordings.py --model_dir demo_output/recognition \
        --data_dir demo_output/data

prints the word error rate of the single utterances and of the recordings, segmented as by `maestro
transcribe`, and segmented at the quietest 20 or 200 ms in the second half of the maximum length.
With `--memory` (on Linux) it prints the memory and the time of `maestro transcribe` for 10 and for
60 minutes instead.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

RATE = 16_000
# Seconds between utterances, and the level of the noise there in dB of full scale.
GAPS: tuple[tuple[float, float | None], ...] = (
    (0.0, None),
    (0.3, None),
    (0.5, None),
    (1.0, None),
    (2.0, None),
    (10.0, None),
    (0.5, -60.0),
    (1.0, -45.0),
    (2.0, -35.0),
)
QUIETEST = (0.02, 0.2)
"""Lengths in seconds of the windows in which the quietest cut is searched."""
MINUTES = (10, 60)
# The peak of this process from Linux; that of getrusage would include its parent's.
_COMMAND = """
import pathlib, re, sys
from maestro_jax.cli.main import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def joined(
    utterances: Sequence[np.ndarray], gap: float, level: float | None, seed: int = 0
) -> np.ndarray:
    """Joins utterances, with silence or white noise before, between and after them."""
    rng = np.random.default_rng(seed)

    def between() -> np.ndarray:
        silence = np.zeros(round(gap * RATE))
        if level is not None:
            silence = 10 ** (level / 20) * rng.normal(size=len(silence))
        return silence

    parts = [part for utterance in utterances for part in (between(), utterance)]
    return np.concatenate([*parts, between()]).astype(np.float32)


def quietest_cuts(samples: np.ndarray, longest: int, seconds: float) -> Iterator[np.ndarray]:
    """Cuts a recording in the quietest window of the second half of each maximum length."""
    window = round(seconds * RATE)
    while len(samples) > longest:
        region = np.square(samples[longest // 2 : longest].astype(np.float64))
        energy = np.convolve(region, np.ones(window), "valid")[:: window // 2 or 1]
        cut = longest // 2 + int(np.argmin(energy)) * (window // 2 or 1) + window // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples


def texts_of(transcriber: Any, pieces: Sequence[np.ndarray]) -> list[str]:
    """Transcribes each piece without further segmentation."""
    from maestro_jax.audio.reading import to_int16

    texts: list[str] = []
    rows = transcriber.data_shards * 8
    for at in range(0, len(pieces), rows):
        audio = np.zeros((rows, transcriber.samples), np.int16)
        lengths = np.zeros(rows, np.int32)
        for row, piece in enumerate(pieces[at : at + rows]):
            audio[row, : len(piece)] = to_int16(piece)
            lengths[row] = len(piece)
        found, _ = transcriber.decode({"audio": audio, "audio_length": lengths})
        texts += found[: len(pieces[at : at + rows])]
    return texts


def measure(options: argparse.Namespace, error_rate: Callable[[str, str], float]) -> None:
    """Prints the error rates."""
    from maestro_jax.data.evaluation_examples import evaluation_examples
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.inference.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(
        options.model_dir, gin_config.load_run(options.model_dir)
    )
    utterances, references = [], []
    for example in evaluation_examples(options.task, options.split, options.data_dir):
        utterances.append(example.features["audio"] / np.float32(32768))
        references.append(example.strings["text"])
    if options.memory:
        _measure_memory(options.model_dir, joined(utterances, 1.0, -60.0))
        return
    reference = " ".join(references)
    alone = " ".join(texts_of(transcriber, utterances))
    cut_alone = " ".join(one.text for one in transcriber.transcribe(utterances))
    minutes = sum(map(len, utterances)) / RATE / 60
    print(
        f"\n{len(utterances)} utterances of {options.task}, {minutes:.1f} minutes: word error rate"
    )
    print(f"  one by one, as they are: {error_rate(reference, alone):.1f}%")
    print(f"  one by one, transcribed: {error_rate(reference, cut_alone):.1f}%\n")
    header = ("between them", "transcribed", *(f"quietest {s * 1000:.0f} ms" for s in QUIETEST))
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for gap, level in GAPS:
        sound = "digital silence" if level is None else f"noise of {level:.0f} dB"
        recording = joined(utterances, gap, level)
        heard = [transcriber.transcribe([recording])[0].text]
        for seconds in QUIETEST:
            pieces = list(quietest_cuts(recording, transcriber.samples, seconds))
            heard.append(" ".join(texts_of(transcriber, pieces)))
        rates = " | ".join(f"{error_rate(reference, text):.1f}" for text in heard)
        between = f"{gap:g} s of {sound}" if gap else "nothing"
        print(f"| {between} | {rates} |", flush=True)


def _measure_memory(model_dir: str, recording: np.ndarray) -> None:
    """Prints peak memory and time of the command for recordings of two lengths."""
    import soundfile

    print("\n| recording | peak memory | seconds |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in MINUTES:
            path = pathlib.Path(folder) / f"{minutes}.wav"
            with soundfile.SoundFile(path, "w", RATE, 1) as file:
                left = minutes * 60 * RATE
                while left > 0:
                    file.write(recording[:left])
                    left -= len(recording)
            began = time.monotonic()
            command = [sys.executable, "-c", _COMMAND, "transcribe", model_dir, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds = time.monotonic() - began
            peak = int(done.stdout.split()[-1]) / 1024
            print(f"| {minutes} min | {peak:.0f} MiB | {seconds:.0f} |", flush=True)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_dir", default="demo_output/recognition")
    parser.add_argument("--data_dir", default="demo_output/data")
    parser.add_argument("--task", default="minivox_small_paired_en")
    parser.add_argument("--split", default="test")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    options = parser.parse_args()
    from maestro_jax.cli import environment

    environment.prepare_process()
    environment.enable_compilation_cache()
    import jiwer

    from maestro_jax.text.normalizers import normalize

    def error_rate(reference: str, hypothesis: str) -> float:
        language = options.task.rpartition("_")[2]
        texts = (normalize(text, language) for text in (reference, hypothesis))
        return 100 * jiwer.wer(*texts)

    measure(options, error_rate)


if __name__ == "__main__":
    main()
