"""Commands with `gs://` in the place of every path: real clients, a server on loopback."""

from __future__ import annotations

import json
import pathlib

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def recording(tmp_path) -> pathlib.Path:
    import numpy as np
    import soundfile

    path = tmp_path / "recording.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000)
    soundfile.write(path, noise.astype(np.float32), 16_000)
    return path


def upload_data(emulator, bucket: str) -> str:
    """Copies the data of the test into a bucket, and returns where they are."""
    from maestro_jax.data.data_dir import data_root

    names = ["vocabularies/minivox_tiny.model"]
    names += [
        str(path.relative_to(data_root()))
        for path in (data_root() / "minivox" / "tiny").rglob("*")
        if path.is_file()
    ]
    for name in names:
        emulator.write(bucket, f"data/{name}", (data_root() / name).read_bytes())
    return f"gs://{bucket}/data"


def steps_of(emulator, bucket: str, run: str) -> list[int]:
    lines = emulator.read(bucket, f"{run}/metrics.jsonl").decode().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_commands_on_a_bucket(maestro, finetune, emulator, bucket, recording, tmp_path) -> None:
    run = f"gs://{bucket}/runs/a"
    cache = {"JAX_COMPILATION_CACHE_DIR": f"gs://{bucket}/xla"}
    data = ["--data_dir", upload_data(emulator, bucket)]
    maestro.run("train", *finetune, *data, "--gin.STEPS=2", "--model_dir", run, **cache)
    objects = emulator.objects(bucket, "runs/a/")
    for name in ("config.gin", "vocabulary.model", "languages.txt", "report.html", "versions.json"):
        assert objects[f"runs/a/{name}"] > 0
    for name in ("commit_success.txt", "files.json", "state/manifest.ocdbt", "data/metadata"):
        assert f"runs/a/checkpoints/2/{name}" in objects
    assert any("events.out.tfevents" in name for name in objects)
    assert emulator.objects(bucket, "xla/")
    assert steps_of(emulator, bucket, "runs/a") == [1, 2]
    assert json.loads(emulator.read(bucket, "runs/a/best_checkpoint.json"))["step"] == 2

    # The cosine ends with the steps.
    more = [*finetune, "--gin.STEPS=3", "--allow_changes"]
    _, log = maestro.run("train", *more, "--model_dir", run, **cache)
    assert f"continuing from step 2 of {run}" in log
    assert steps_of(emulator, bucket, "runs/a") == [1, 2, 3]
    assert "runs/a/config.gin.1" in emulator.objects(bucket, "runs/a/")

    # The same from a disk, with what the server has: downloaded without any of the clients.
    disk = tmp_path / "disk"
    for name in emulator.objects(bucket, "runs/a/"):
        if not name.endswith("/"):
            path = disk / name.removeprefix("runs/a/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(emulator.read(bucket, name))
    there, here = (
        json.loads(maestro.run("transcribe", place, str(recording), "--json")[0])
        for place in (run, str(disk))
    )
    assert there == here and there[0]["file"] == str(recording)

    scores = []
    for place, where in ((run, data), (str(disk), [])):
        out, _ = maestro.run(
            *("eval", "--json", "--model_dir", place, "--task", "minivox_tiny_paired_de", *where)
        )
        scores.append([table["rows"] for table in json.loads(out)])
    assert scores[0] == scores[1] and scores[0][0][0]["utterances"] > 0
    results = {pathlib.PurePosixPath(n).name for n in emulator.objects(bucket, "runs/a/evaluation")}
    local = {path.name for path in (disk / "evaluation").rglob("*") if path.is_file()}
    assert local and local <= results

    before = emulator.read(bucket, "runs/a/report.html")
    assert maestro.run("report", run)[0] == f"{run}/report.html\n"
    after = emulator.read(bucket, "runs/a/report.html").decode()
    assert "minivox_tiny_paired_de" in after and len(after) > len(before)

    out, _ = maestro.run(
        *("plan", "--gin_file", f"{run}/config.gin", "--topology", "v5e:2x2", "--roofline")
    )
    assert "1,300,018 parameters" in out


def test_other_files_on_a_bucket(maestro, finetune, emulator, bucket, recording, tmp_path) -> None:
    """Language models, recordings, outputs, the start of another run; and what is refused."""
    run = f"gs://{bucket}/a"
    maestro.run("train", *finetune, "--gin.STEPS=2", "--model_dir", run)
    text = tmp_path / "text.txt"
    text.write_text("eins zwei drei\nsedem osem devet\n")
    model = f"gs://{bucket}/lm/small.arpa.gz"
    maestro.run("language_model", run, str(text), "--output", model)
    assert emulator.read(bucket, "lm/small.arpa.gz")[:2] == b"\x1f\x8b"

    emulator.write(bucket, "speech/deep/a.wav", recording.read_bytes())
    emulator.write(bucket, "speech/deep/notes.txt", b"none")
    beam = ["--beam_size", "2", "--lm_arpa", model, "--json"]
    there, _ = maestro.run("transcribe", f"{run}/best", f"gs://{bucket}/speech", *beam)
    here, _ = maestro.run("transcribe", run, str(recording), *beam)
    (there,), (here,) = json.loads(there), json.loads(here)
    assert there.pop("file") == f"gs://{bucket}/speech/deep/a.wav"
    assert here.pop("file") == str(recording) and there == here

    output = f"gs://{bucket}/out/a.json"
    maestro.run("align", run, str(recording), "eins", "--output", output)
    assert json.loads(emulator.read(bucket, "out/a.json"))

    profile = ["--gin.TrainRun.profile_steps=(2, 2)", f"--gin.INIT_FROM={run}"]
    maestro.run("train", *finetune, *profile, "--gin.STEPS=2", "--model_dir", f"gs://{bucket}/b")
    found = emulator.objects(bucket, "b/")
    assert "b/init_report.txt" in found
    assert any(name.endswith(".xplane.pb") for name in found)

    # A checkpoint that has lost an object is set aside, and training goes on from the one before.
    longer = ["train", *finetune, "--gin.STEPS=4", "--allow_changes", "--model_dir", run]
    maestro.run(*longer)
    (array, *_) = sorted(emulator.objects(bucket, "a/checkpoints/4/state/d/"))
    emulator.delete(bucket, array)
    _, log = maestro.run(*longer)
    assert f"{run}/damaged_checkpoints/4; continuing from step 2" in log
    assert emulator.objects(bucket, "a/damaged_checkpoints/4/state/")
    assert emulator.objects(bucket, "a/checkpoints/4/state/d/")
    assert steps_of(emulator, bucket, "a") == [1, 2, 3, 4]

    for arguments, message in (
        (["transcribe", run, f"gs://{bucket}/none.wav"], "there is no recording gs://"),
        (["transcribe", f"gs://{bucket}/none", str(recording)], "is not a checkpoint directory"),
        (["eval", "--model_dir", "gs://no-such-bucket/a"], "there is no model directory gs://"),
        (["report", f"gs://{bucket}/speech"], "cannot read the metrics of a run from gs://"),
        (["report", "s3://bucket/a"], "of object stores only gs:// is supported"),
        (["train", "--gin_file", f"gs://{bucket}/none.gin", "--dry_run"], "there is no gin file"),
        (["prepare", "minivox", "--config", "tiny", "--data_dir", "gs://b"], "mount the bucket"),
        (["prepare", "voxpopuli", "--source_dir", "gs://b"], "mount the bucket"),
        (["demo", "--output_dir", "gs://b/out"], "mount the bucket"),
    ):
        _, error = maestro.run(*arguments, code=2)
        last = error.splitlines()[-1]
        assert last.startswith("error: ") and message in last, error


@pytest.mark.multiprocess
def test_two_processes_on_a_bucket(maestro, finetune, emulator, bucket) -> None:
    run = f"gs://{bucket}/two"
    train = ["train", *finetune, "--model_dir", run]
    maestro.run_on_two(*train, "--gin.STEPS=2")
    objects = emulator.objects(bucket, "two/checkpoints/2/")
    for process in "01":
        assert any(f"ocdbt.process_{process}/" in name for name in objects)
    logs = maestro.run_on_two(*train, "--gin.STEPS=3", "--allow_changes")
    assert f"continuing from step 2 of {run}" in logs[0][1]
    assert steps_of(emulator, bucket, "two") == [1, 2, 3]
