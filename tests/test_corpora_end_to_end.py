"""Every corpus from its official layout through `maestro prepare` to training steps."""

from __future__ import annotations

import collections
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import layouts_babel
import layouts_common_voice
import layouts_covost2
import layouts_fleurs
import layouts_libri_light
import layouts_librispeech
import layouts_mls
import layouts_tedlium
import layouts_text
import layouts_voxpopuli
import pytest
from spoken import speak_to

from maestro_jax.cli.main import main
from maestro_jax.data.byte_vocabulary import CONTENT
from maestro_jax.data.corpora.corpus import corpus_names
from maestro_jax.data.vocabularies import write_atomically

# Minutes of compilation: `make test-slow` runs it.
pytestmark = pytest.mark.slow

NARROW = {
    "VOCAB_SIZE": "259",
    "FEATURES": "16",
    "HIDDEN": "16",
    "SPEECH_LAYERS": "1",
    "SHARED_LAYERS": "1",
    "TEXT_FEATURES": "16",
    "CODES": "8",
    "CODE_FEATURES": "8",
    "DROPOUT": "0.0",
    "WARMUP_STEPS": "1",
    "STEPS": "4",
    "LOG_EVERY": "1",
    "DIAGNOSTICS_EVERY": "0",
}
STREAMS = ("speech", "paired", "text", "mt", "st")


def lay_out_manifest(source: Path) -> None:
    """Two spoken lines and one to test with."""
    lines = {"train": ["one two", "three four"], "test": ["five six"]}
    for split, texts in lines.items():
        rows = []
        for number, text in enumerate(texts):
            speak_to(source / split / f"{number}.flac", text)
            row = {"audio": f"{split}/{number}.flac", "text": text, "language": "en"}
            rows.append(json.dumps(row) + "\n")
        (source / f"{split}.jsonl").write_text("".join(rows))


def lay_out_libri_text(source: Path) -> None:
    """The text as it is downloaded."""
    source.mkdir()
    with gzip.open(source / "librispeech-lm-norm.txt.gz", "wt", encoding="utf-8") as file:
        file.write("A SENTENCE OF A BOOK\nAND ANOTHER ONE\n")


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "librispeech": layouts_librispeech.lay_out,
    "librispeech_text": lay_out_libri_text,
    "libri_light": layouts_libri_light.lay_out,
    "mls": layouts_mls.lay_out,
    "mls_text": layouts_mls.lay_out,
    "common_voice": layouts_common_voice.lay_out,
    "covost2": layouts_covost2.lay_out,
    "voxpopuli": layouts_voxpopuli.lay_out,
    "voxpopuli_unlabelled": layouts_voxpopuli.lay_out,
    "voxpopuli_text": layouts_voxpopuli.lay_out,
    "fleurs": layouts_fleurs.lay_out,
    "babel": layouts_babel.lay_out,
    "tedlium": layouts_tedlium.lay_out,
    "ami": lay_out_manifest,
    "broadcast_news": lay_out_manifest,
    "switchboard_fisher": lay_out_manifest,
    "wsj": lay_out_manifest,
    "text_files": layouts_text.lay_out_mc4,
    "parallel_text": layouts_text.lay_out_parallel,
}


def test_no_corpus_is_forgotten() -> None:
    # A manifest has a name of its own and tasks of its own: the corpora of SpeechStew stand for it.
    assert set(LAYOUTS) == set(corpus_names()) - {"manifest"}


def test_from_files_to_training_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import seqio

    from maestro_jax.cli import gin_config
    from maestro_jax.data.task_listing import list_tasks
    from maestro_jax.training.loop import train

    root = tmp_path / "data"
    write_atomically(root / "vocabularies" / "multilingual.model", CONTENT)
    for corpus, lay_out in LAYOUTS.items():
        source = tmp_path / corpus
        directory = lay_out(source) or source
        directory = directory if isinstance(directory, Path) else source
        command = ["prepare", corpus, "--source_dir", str(directory), "--data_dir", str(root)]
        if corpus == "common_voice":
            # The layout has languages with nothing but an empty table, too.
            assert main([*command, "--workers", "1"]) == 2
            assert "nothing could be used of zh" in capfd.readouterr().err
        else:
            assert main([*command, "--workers", "1"]) == 0, capfd.readouterr().err

    ready: dict[str, list[str]] = collections.defaultdict(list)
    for row in list_tasks(str(root)):
        if row.kind == "task" and row.ready and (row.examples or {}).get("train"):
            ready[row.stream].append(row.name)
    covered = {
        corpus
        for corpus in LAYOUTS
        if any(name.startswith(f"{corpus}_") for names in ready.values() for name in names)
    }
    assert covered == set(LAYOUTS)
    assert set(ready) == set(STREAMS)

    # One mixture a stream, in which all are drawn equally often.
    batch = 16
    for stream, names in ready.items():
        name = f"everything_{stream}"
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, [(task, 1.0) for task in names])
    streams = [f"{stream}/streams.StreamConfig" for stream in STREAMS]
    lines = ["from maestro_jax.data import streams"]
    for stream, config in zip(STREAMS, streams, strict=True):
        lines += [f'{config}.mixture = "everything_{stream}"', f"{config}.batch_size = {batch}"]
    file = tmp_path / "everything.gin"
    header = "from __gin__ import dynamic_registration\n"
    file.write_text(header + "\n".join(lines) + "\n")
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin"]
    files += ["data/minivox_small.gin", str(file)]
    run = gin_config.parse_and_build(files, NARROW)
    model_dir = tmp_path / "model"
    train(run, model_dir=model_dir, data_dir=root)
    metrics = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 4 and metrics[-1]["skipped_steps"] == 0
