"""Measures evaluation end to end, at the shipped bounds of VoxPopuli and CoVoST-2.

Sentences of MiniVox are joined to utterances as long as those of the corpora, prepared, and decoded
by the model of `gin/models/tiny.gin`, which has room for 32 seconds, as the shipped runs have. The
same audio is also cut into pieces of one length, which need no padding. Beside it stands the
pipeline of transformers with a Wav2Vec2-Conformer of the same encoder, on PyTorch.

Random weights emit nothing but blanks, or nothing but labels; the bias of the blank is therefore
adjusted until greedy decoding emits about as many labels per second as spoken English has letters.
The model has no positions: with sinusoidal ones, what random weights emit depends on how far into
an utterance they are, six times as many labels per second in one of 31 seconds as in one of 10.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from command import add_options, put_out
from rows import Bar, Row, Table
from timing import Contender, ContenderError, available_cores, progress, take_turns

PARTS = ("padding", "processes", "peer")
RATE = 16_000
BOUND = 32 * RATE
"""Samples of the longest audio of the shipped runs (AUDIO_SAMPLES of gin/data/voxpopuli.gin)."""
# Mean and standard deviation of the logarithm of an utterance's seconds, and the longest: rounded
# from the published hours and counts of the test sets (VoxPopuli about 10 s, CoVoST-2 about 5 s).
LENGTHS = {"voxpopuli": (2.15, 0.6, 31.0), "covost2": (1.6, 0.35, 20.0)}
PADDING_BAR = Bar(limit=1.3, at_most=True)
GREEDY_BAR = Bar(limit=50.0, on="ours")
BEAM_BAR = Bar(limit=25.0, on="ours")
PEER_BAR = Bar(limit=3.0)
BEAM = 4
TARGET_RATE = 12.5
_PEER_BATCH = 8
_TASKS = """
from maestro_jax.tasks.corpus_tasks import add_corpus_task

for corpus in {corpora}:
    add_corpus_task(corpus, "en", stream="paired", language="en", splits=["test"])
"""


def parse_arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, PARTS)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="minutes of speech per corpus (default 30)"
    )
    parser.add_argument(
        "--peer_minutes", type=float, default=5.0, help="minutes of it for the peer (default 5)"
    )
    arguments = parser.parse_args()
    if arguments.update_docs and arguments.only:
        parser.error("--update_docs writes all parts: leave --only out")
    return arguments


def speak(folder: pathlib.Path, minutes: float, peer_minutes: float) -> dict[str, float]:
    """Writes manifests per corpus: all, the same audio in pieces of one length, and a part.

    Args:
        folder: Where to write.
        minutes: Speech per corpus.
        peer_minutes: Speech of the part.

    Returns:
        Seconds of audio by corpus.
    """
    import soundfile

    from maestro_jax.minivox.config import SMALL
    from maestro_jax.minivox.corpus import make_example

    rng = np.random.default_rng(0)
    sentences = [make_example(SMALL, "paired_en_test", number) for number in range(100)]
    seconds = {}
    for corpus, (mean, deviation, longest) in LENGTHS.items():
        left, utterances = minutes * 60, []
        while left > 0:
            wanted = min(float(np.exp(rng.normal(mean, deviation))), longest)
            audio, texts = np.zeros(0, np.int16), []
            while len(audio) < wanted * RATE:
                sentence = sentences[rng.integers(len(sentences))]
                audio = np.concatenate([audio, sentence.audio, np.zeros(RATE // 5, np.int16)])
                texts.append(sentence.text)
            utterances.append((audio[: round(wanted * RATE)], " ".join(texts)))
            left -= wanted
        joined = np.concatenate([audio for audio, _ in utterances])
        length = len(joined) // len(utterances) // 1280 * 1280
        even = [
            (joined[at : at + length], "even") for at in range(0, len(joined) - length + 1, length)
        ]
        ends = np.cumsum([len(audio) for audio, _ in utterances])
        part = utterances[: 1 + int(np.searchsorted(ends, peer_minutes * 60 * RATE))]
        parts = {corpus: utterances, f"{corpus}_even": even, f"{corpus}_part": part}
        for name, pieces in parts.items():
            directory = folder / "audio" / name
            directory.mkdir(parents=True)
            lines = []
            for number, (audio, text) in enumerate(pieces):
                soundfile.write(directory / f"{number}.wav", audio, RATE)
                line = {"audio": f"{number}.wav", "text": text, "language": "en"}
                lines.append(json.dumps(line) + "\n")
            (directory / "test.jsonl").write_text("".join(lines))
            seconds[name] = sum(len(audio) for audio, _ in pieces) / RATE
    return seconds


def prepare_data(folder: pathlib.Path, corpora: Sequence[str]) -> None:
    """Prepares the manifests, and writes the module with their tasks."""
    from maestro_jax.cli.main import main as maestro

    for corpus in corpora:
        arguments = ["--source_dir", str(folder / "audio" / corpus)]
        arguments += ["--name", corpus_name(corpus), "--data_dir", str(folder / "data")]
        with contextlib.redirect_stdout(sys.stderr):
            if code := maestro(["prepare", "manifest", *arguments]):
                raise SystemExit(code)
    names = [corpus_name(corpus) for corpus in corpora]
    (folder / "bench_tasks.py").write_text(_TASKS.format(corpora=names))


def corpus_name(corpus: str) -> str:
    """Returns the name under which a corpus is prepared, which no shipped one has."""
    return f"bench_{corpus}"


def write_model(folder: pathlib.Path) -> float:
    """Writes a model directory with random weights, and returns its labels per second."""
    import jax
    from decoding_speed import _search, _shift_blank, _speak

    from maestro_jax.gin_utils import gin_config, run_record
    from maestro_jax.text.vocabularies import ByteVocabulary
    from maestro_jax.training.checkpoints import Checkpoints
    from maestro_jax.training.parameter_trees import unbox
    from maestro_jax.training.state import create_state

    files = ["models/tiny.gin", "data/voxpopuli.gin", "objectives/speech_recognition.gin"]
    bindings = {"STEPS": "1", "INIT_FROM": "None", "VOCAB_SIZE": "259", "EVAL_EVERY": "0"}
    bindings |= {"conformer.ConformerStack.positions": "'none'"}
    bindings |= {"ENCODER_WARMUP": "0", "DECODER_WARMUP": "0", "PAIRED_BATCH": "8"}
    run = gin_config.parse_and_build(["runs/finetune.gin", *files], bindings)
    run_record.write(folder, {"config.gin": gin_config.config_text()}, ["benchmark"])
    ByteVocabulary().save(folder)
    params = unbox(jax.jit(run.model.init)(jax.random.key(0), {}))["params"]
    audio, lengths = _speak(30.0)
    decode = _search(run.model, 1000, None)
    seconds = float(lengths.sum()) / RATE
    talkative, silent, rate = -20.0, 20.0, 0.0
    shifted = params
    for _ in range(24):
        shift = (talkative + silent) / 2
        shifted = _shift_blank(params, shift)
        rate = float(decode(shifted, audio, lengths).lengths.sum()) / seconds
        if abs(rate - TARGET_RATE) < 0.25:
            break
        talkative, silent = (shift, silent) if rate > TARGET_RATE else (talkative, shift)
    checkpoints = Checkpoints(folder)
    checkpoints.save(create_state(shifted, run.optimizer), {"step": 1})
    checkpoints.close()
    return rate


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares an evaluation; its `run` decodes and scores the whole corpus."""
    if job["method"] == "peer":
        return _peer(job)
    sys.path.insert(0, job["folder"])
    import bench_tasks  # noqa: F401

    from maestro_jax.evaluation.run_evaluation import evaluate_test_sets, select_test_sets
    from maestro_jax.gin_utils import gin_config
    from maestro_jax.inference.search_config import SearchConfig
    from maestro_jax.inference.transcriber import Transcriber

    transcriber = Transcriber.from_checkpoint(
        job["model_dir"],
        gin_config.load_run(job["model_dir"]),
        search=SearchConfig(beam_size=job["beam"]),
    )
    test_sets = select_test_sets([f"{corpus_name(job['corpus'])}_paired_en"], "test")

    def run() -> object:
        return evaluate_test_sets(
            test_sets,
            transcriber,
            directory=f"{job['folder']}/results-{job['corpus']}-{job['beam']}",
            data_dir=f"{job['folder']}/data",
            overwrite=True,
        )

    run()
    return {}, run


def _peer(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Prepares transformers' pipeline with a Wav2Vec2-Conformer of the encoder of tiny.gin."""
    import soundfile
    import torch
    from torchaudio_beside_cpu_torch import load_torchaudio

    # transformers imports it where it is installed, and its wheel wants CUDA's libraries.
    with contextlib.suppress(ImportError):
        load_torchaudio()
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(job["cores"])
    letters = [*"abcdefghijklmnopqrstuvwxyz'", "|", "<pad>", "<unk>"]
    vocabulary = pathlib.Path(job["folder"]) / "letters.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    config = transformers.Wav2Vec2ConformerConfig(
        vocab_size=len(letters),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        conv_depthwise_kernel_size=5,
        pad_token_id=letters.index("<pad>"),
    )
    model = transformers.Wav2Vec2ConformerForCTC(config).eval()
    pipe = transformers.pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=transformers.Wav2Vec2CTCTokenizer(str(vocabulary)),
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        device="cpu",
    )
    paths = sorted((pathlib.Path(job["folder"]) / "audio" / job["corpus"]).glob("*.wav"))

    def run() -> object:
        audio = (
            {"raw": soundfile.read(p, dtype="float32")[0], "sampling_rate": RATE} for p in paths
        )
        return [found["text"] for found in pipe(audio, batch_size=_PEER_BATCH)]

    parameters = sum(p.numel() for p in model.wav2vec2_conformer.encoder.parameters())
    return {"encoder_parameters": parameters}, run


def measure_padding(folder: pathlib.Path, seconds: dict[str, float], repeats: int) -> Table:
    """Measures time over audio at the shipped bounds, beside the same audio without padding."""
    rows, remarks = [], []
    for beam, bar in ((1, GREEDY_BAR), (BEAM, BEAM_BAR)):
        method = "greedy" if beam == 1 else f"beam {beam}"
        for corpus in LENGTHS:
            with contextlib.ExitStack() as stack:
                contenders = {}
                for name in (corpus, f"{corpus}_even"):
                    progress(f"{method}, {name}: compiling")
                    job = {"method": "ours", "corpus": name, "beam": beam, "folder": str(folder)}
                    job["model_dir"] = str(folder / "model")
                    cores = min(2, available_cores())
                    contender = Contender("evaluation", job, cores=cores)
                    contenders[name] = stack.enter_context(contender)
                times = take_turns(contenders, repeats)
            ours, even = (times[name].best / seconds[name] for name in (corpus, f"{corpus}_even"))
            decoding = _decoding(folder / f"results-{corpus}-{beam}")
            note = (
                f"padded by real length {decoding['padding']:.2f}; of {times[corpus].best:.1f} s "
                f"decoding {decoding['decode_seconds']:.1f}, input {decoding['input_seconds']:.1f}"
                f", scoring {decoding['score_seconds']:.1f}"
            )
            size = f"{corpus}, {seconds[corpus] / 60:.0f} minutes"
            rows.append(
                Row(what=method, size=size, ours=1 / ours, unit="x real time", bar=bar, note=note)
            )
            rows.append(
                Row(
                    what=f"{method}, time over audio",
                    size=size,
                    ours=ours,
                    unit="s",
                    peer_name="unpadded",
                    peer=even,
                    ratio=ours / even,
                    bar=PADDING_BAR,
                    note="per second of audio",
                )
            )
    title = "Evaluation at the shipped bounds, end to end, two cores"
    return Table(title, "padded over unpadded", tuple(rows), tuple(remarks))


def _decoding(directory: pathlib.Path) -> dict[str, float]:
    [path] = directory.glob("*.test.json")
    return json.loads(path.read_text())["decoding"]


def measure_processes(folder: pathlib.Path, seconds: dict[str, float]) -> Table:
    """Measures `maestro eval` in one process on one core, and in two on two."""
    rows = []
    for corpus in LENGTHS:
        took = {}
        for count in (1, min(2, available_cores())):
            progress(f"{corpus} in {count} processes")
            took[count] = _run_processes(folder, corpus, count)
        size = f"{corpus}, {seconds[corpus] / 60:.0f} minutes"
        two = max(took)
        rows.append(
            Row(
                what=f"{two} processes, input and decoding",
                size=size,
                ours=took[two],
                unit="s",
                peer_name="one process",
                peer=took[1],
                ratio=took[1] / took[two],
                note="one core per process",
            )
        )
    title = "Evaluation in two processes"
    return Table(title, "times faster", tuple(rows))


def _run_processes(folder: pathlib.Path, corpus: str, count: int) -> float:
    """Runs `maestro eval`, compiled before, and returns the seconds of input and decoding."""
    import socket

    output = folder / f"results-{corpus}-{count}-processes"
    for _ in ("compile", "measure"):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        started = []
        for index in range(count):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
                "PYTHONPATH": str(folder),
                "MAESTRO_MULTIHOST": str(int(count > 1)),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            words = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[index])]
            words += [sys.executable, "-m", "maestro_jax.cli.main", "eval", "--overwrite"]
            words += ["--model_dir", str(folder / "model"), "--data_dir", str(folder / "data")]
            words += ["--task", f"{corpus_name(corpus)}_paired_en", "--import", "bench_tasks"]
            words += ["--output_dir", str(output)]
            with (folder / f"log-{corpus}-{count}-{index}.txt").open("w") as log:
                started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
        if any(process.wait() for process in started):
            logs = sorted(folder.glob(f"log-{corpus}-{count}-*.txt"))
            raise SystemExit("".join(log.read_text()[-2000:] for log in logs))
    decoding = _decoding(output)
    return decoding["input_seconds"] + decoding["decode_seconds"]


def measure_peer(
    folder: pathlib.Path, seconds: dict[str, float], repeats: int, peers_python: str
) -> Table:
    """Measures ours beside transformers' pipeline, from audio to scored or written text."""
    title = "Evaluation beside transformers' pipeline, end to end, two cores"
    cores = min(2, available_cores())
    rows = []
    for corpus in LENGTHS:
        part = f"{corpus}_part"
        job = {"corpus": part, "folder": str(folder), "cores": cores, "beam": 1}
        with contextlib.ExitStack() as stack:
            progress(f"{corpus}: transformers")
            try:
                peer = Contender(
                    "evaluation", job | {"method": "peer"}, cores=cores, python=peers_python
                )
            except ContenderError as error:
                if not error.missing:
                    raise
                return Table(title, "times faster", (), (f"Not measured: {error}",))
            contenders = {"peer": stack.enter_context(peer)}
            job |= {"method": "ours", "model_dir": str(folder / "model")}
            contenders["ours"] = stack.enter_context(Contender("evaluation", job, cores=cores))
            times = take_turns(contenders, repeats)
        rows.append(
            Row(
                what="greedy transducer; greedy CTC",
                size=f"{corpus}, {seconds[part] / 60:.0f} minutes",
                ours=seconds[part] / times["ours"].best,
                unit="x real time",
                peer_name="Wav2Vec2-Conformer",
                peer=seconds[part] / times["peer"].best,
                ratio=times["peer"].best / times["ours"].best,
                bar=PEER_BAR,
                note=f"encoder of {peer.report['encoder_parameters'] / 1e6:.1f}M parameters",
            )
        )
    remark = (
        f"The pipeline reads the same WAV files in batches of {_PEER_BATCH}; ours reads the "
        "prepared corpus, decodes and scores it."
    )
    return Table(title, "times faster", tuple(rows), (remark,))


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    parts = [part for part in PARTS if part in (arguments.only or PARTS)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        progress(f"speaking {arguments.minutes:g} minutes per corpus")
        seconds = speak(folder, arguments.minutes, arguments.peer_minutes)
        prepare_data(folder, list(seconds))
        rate = write_model(folder / "model")
        progress(f"the model writes {rate:.1f} labels per second")
        tables = []
        for part in parts:
            if part == "padding":
                table = measure_padding(folder, seconds, arguments.repeats)
            elif part == "processes":
                table = measure_processes(folder, seconds)
            else:
                python = arguments.peers_python
                table = measure_peer(folder, seconds, arguments.repeats, python)
            tables.append(table)
            if not arguments.json and not arguments.markdown:
                print(f"{table.text()}\n", flush=True)
    put_out("evaluation", tables, arguments, ("jax", "jaxlib"))


if __name__ == "__main__":
    main()
