from __future__ import annotations

import json
import os
import pathlib

import pytest

from maestro_jax import provenance
from maestro_jax.cli.run_summary import summary
from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config, gin_source, run_record
from maestro_jax.modules.maestro import Maestro


def message(gin_files: list[str], bindings: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        gin_config.parse_and_build(gin_files, bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def appended(run_file: str, text: str) -> str:
    """A file of the user's own, which includes the run."""
    path = pathlib.Path(run_file).with_name("mine.gin")
    path.write_text(f"include '{pathlib.Path(run_file).name}'\nSTEPS = 5\n{text}\n")
    return str(path)


def test_a_run_is_built_from_files_and_bindings(run_file: str) -> None:
    run = gin_config.parse_and_build(
        [run_file], {"STEPS": "7", "lower/ConformerStack.layers": "3", "TrainRun.log_every": "2"}
    )
    assert type(run.model) is Maestro
    assert run.steps == 7 and run.optimizer.decay_steps == 7 and run.log_every == 2
    assert run.model.speech_encoder.stack.layers == 3
    assert run.model.shared_encoder.stack.layers == 2
    assert run.streams["paired"].mixture == "minivox_small_paired"


def test_a_second_parse_forgets_the_first(run_file: str) -> None:
    gin_config.parse_and_build([run_file], {"STEPS": "7", "SEED": "3"})
    assert gin_config.parse_and_build([run_file], {"STEPS": "8"}).seed == 0


def test_the_last_file_wins(run_file: str, tmp_path: pathlib.Path) -> None:
    second = tmp_path / "second.gin"
    second.write_text("SEED = 11\nSTEPS = 2\n")
    assert gin_config.parse_and_build([run_file, str(second)]).seed == 11


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/models/pretrained", "/models/pretrained"),
        ("pretrained", "pretrained"),
        ("gs://bucket/model-1", "gs://bucket/model-1"),
        ("run 1/2", "run 1/2"),
        ("'/quoted'", "/quoted"),
        ("2024-01/run", "2024-01/run"),
        ("None", None),
    ],
)
def test_strings_may_stand_bare_on_the_command_line(
    run_file: str, value: str, expected: str | None
) -> None:
    run = gin_config.parse_and_build([run_file], {"STEPS": "1", "INIT_FROM": value})
    assert run.init_from == expected


def test_numbers_and_truth_values_may_not(run_file: str) -> None:
    assert "write True" in message([run_file], {"STEPS": "1", "SpeechRecognition.augment": "true"})
    text = message([run_file], {"STEPS": "1", "SEED": "many"})
    assert "--gin.SEED=many" in text and "not a number" in text
    assert "quotes" in message([run_file], {"STEPS": "1", "INIT_FROM": "'open"})
    assert "quotes and brackets" in message([run_file], {"STEPS": "(1"})


def test_a_required_macro_is_named_with_the_remedy(run_file: str) -> None:
    assert message([run_file]) == "STEPS must be set: pass --gin.STEPS=..."


def test_a_required_parameter_is_named_with_the_remedy(run_file: str) -> None:
    mine = appended(run_file, "paired/streams.StreamConfig.batch_size = %gin.REQUIRED")
    # Even before the missing import of `streams` in that file is noticed.
    assert "--gin.paired/StreamConfig.batch_size=..." in message([mine])


def test_a_misspelt_macro_on_the_command_line(run_file: str) -> None:
    text = message([run_file], {"STEPS": "1", "STEPSS": "3"})
    assert "--gin.STEPSS" in text and "'STEPS'" in text


def test_a_misspelt_macro_in_a_file(run_file: str) -> None:
    text = message([appended(run_file, "MIXTRUE = 'x'")])
    assert "mine.gin:3" in text and "Did you mean 'MIXTURE'" in text


def test_a_macro_that_is_read_and_never_set(run_file: str) -> None:
    mine = appended(run_file, "SEED = %SEEDS")
    text = message([mine])
    assert "mine.gin:3" in text and "'SEEDS'" in text and "Did you mean" in text


def test_a_misspelt_parameter(run_file: str) -> None:
    text = message([run_file], {"STEPS": "1", "TrainRun.stepz": "3"})
    assert "'stepz'" in text and "Did you mean 'steps'" in text
    # The first argument of a method is none of the parameters.
    assert "'self'" not in message([run_file], {"STEPS": "1", "TrainRun.selv": "3"})
    mine = appended(
        run_file,
        "from __gin__ import dynamic_registration\n"
        "from maestro_jax.training import run\n"
        "run.TrainRun.chekpoint_every = 3",
    )
    text = message([mine])
    assert "mine.gin:5" in text and "Did you mean 'checkpoint_every'" in text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("from maestro_jax.training import runs", "no module 'runs'. Did you mean 'run'"),
        (
            "from maestro_jax.training import run\nrun.TrainRum.steps = 1",
            "no 'TrainRum'. Did you mean 'TrainRun'",
        ),
        ("runs.TrainRun.steps = 1", "'runs' is not imported"),
        (
            "TrainRun.steps = 1",
            "write `from maestro_jax.training import run` at the file's top, and",
        ),
        ("import no_such_package", "imports no_such_package"),
    ],
)
def test_unknown_modules_and_classes(run_file: str, lines: str, expected: str) -> None:
    mine = appended(run_file, f"from __gin__ import dynamic_registration\n{lines}")
    text = message([mine])
    assert expected in text and "mine.gin:" in text


def test_a_file_that_does_not_register_what_it_imports(run_file: str) -> None:
    lines = "from maestro_jax.training import trackers\nTrainRun.trackers = (@trackers.Csv(),)"
    text = message([appended(run_file, lines)])
    assert "mine.gin:" in text and "begins with `from __gin__ import dynamic_registration`" in text


def test_an_unknown_class_on_the_command_line(run_file: str) -> None:
    text = message([run_file], {"STEPS": "1", "TrainRum.seed": "3"})
    assert "--gin.TrainRum.seed" in text and "'TrainRun'" in text


@pytest.mark.parametrize("line", ["STEPS = ", "STEPS 3", "STEPS = (1, 2", "SEED = 'x"])
def test_syntax_errors_name_file_and_line(run_file: str, line: str) -> None:
    text = message([appended(run_file, line)])
    assert "mine.gin:" in text and "not gin syntax" in text


def test_an_unknown_file_and_an_unknown_include(run_file: str, tmp_path: pathlib.Path) -> None:
    assert "no gin file 'no/such.gin'" in message(["no/such.gin"])
    path = tmp_path / "including.gin"
    path.write_text("\ninclude 'nowhere.gin'\n")
    assert "including.gin:2" in message([str(path)])


def test_near_misses_among_the_shipped_files(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pretrain.gin").write_text("")
    monkeypatch.setattr(gin_source, "config_root", lambda: tmp_path)
    assert "Did you mean 'runs/pretrain.gin'" in message(["runs/pertrain.gin"])
    assert gin_source.find_file("runs/pretrain.gin") == tmp_path / "runs" / "pretrain.gin"


def test_shipped_includes_are_found_quietly(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'runs/pretrain.gin'\n")
    monkeypatch.chdir(tmp_path)
    # The run file leaves model, objective and data to others.
    text = message([str(mine)], {"STEPS": "1"})
    assert "the macro 'MODEL' is read but never set: add a gin file that sets it (models/" in text
    whole = tmp_path / "whole.gin"
    whole.write_text("include 'runs/demo_pretrain.gin'\n")
    gin_config.parse([str(whole)])
    assert capfd.readouterr().err == ""


def test_a_circle_of_includes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("circle.gin").write_text("include 'circle.gin'\n")
    assert "which includes it" in message(["circle.gin"])


def test_a_file_that_describes_no_run(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "empty.gin"
    path.write_text("# Nothing.\n")
    assert "--gin_file runs/" in message([str(path)])


def test_a_missing_field_and_a_refused_value(run_file: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bare.gin"
    path.write_text(
        "from __gin__ import dynamic_registration\n"
        "from maestro_jax.training import run\n"
        "run.TrainRun.steps = 3\n"
    )
    text = message([str(path)])
    assert "TrainRun needs model" in text and "--gin.TrainRun.model=" in text
    assert "seed is -1" in message([run_file], {"STEPS": "1", "SEED": "-1"})


def test_the_config_text_builds_the_same_run(run_file: str, tmp_path: pathlib.Path) -> None:
    long = "a/" * 80 + "b"
    run = gin_config.parse_and_build([run_file], {"STEPS": "7", "INIT_FROM": long})
    text = gin_config.config_text()
    run_record.write(tmp_path / "model", {"config.gin": text}, ["maestro"])
    again = gin_config.load_run(tmp_path / "model")
    assert again == run and again.init_from == long
    assert gin_config.config_text() == text
    assert gin_config.load_run(tmp_path / "model", {"STEPS": "9"}).steps == 9


def test_the_operative_config_has_the_defaults(run_file: str) -> None:
    run = gin_config.parse_and_build([run_file], {"STEPS": "7"})
    text = gin_config.operative_config_text()
    assert f"run.TrainRun.keep_checkpoints = {run.keep_checkpoints}" in text
    assert "keep_checkpoints" not in gin_config.config_text()


def test_includes_are_found_from_any_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.gin"
    mine.write_text("include 'runs/demo_pretrain.gin'\n")
    monkeypatch.chdir(os.sep)
    assert gin_config.parse_and_build([str(mine)], {"STEPS": "6000"}).steps == 6000


def test_what_several_files_include_is_read_once(run_file: str, tmp_path: pathlib.Path) -> None:
    """`runs/demo_pretrain.gin` includes the same two files, and changes what they set."""
    mine = tmp_path / "mine.gin"
    mine.write_text(
        "include 'models/tiny.gin'\ninclude 'objectives/maestro.gin'\nMAX_TEXT_FRAMES = 7\n"
    )
    files = ["runs/demo_pretrain.gin", str(mine)]
    run = gin_config.parse_and_build(files)
    assert run.objective.curriculum.phases[1].start_step == 10
    assert run.model.decoder.dropout == 0.0
    assert run.objective.max_text_frames == 7
    # A file that is named is read, also a second time.
    again = gin_config.parse_and_build([*files, "models/tiny.gin"])
    assert again.model.decoder.dropout == 0.1
    # What the command line says is told apart by the last value that a file gave.
    assert gin_config.parse_and_build([*files], {"DROPOUT": "0.3"}).model.decoder.dropout == 0.3


def test_a_directory_of_an_includes_name_is_no_package(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`maestro` is started where somebody keeps `runs/`, and that directory is on Python's path."""
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gin_config.parse(
        ["runs/finetune.gin", "models/tiny.gin", "objectives/speech_recognition.gin"],
        {"STEPS": "3", "INIT_FROM": "None", "STREAMS": "{}"},
    )


def test_records_are_not_overwritten(tmp_path: pathlib.Path) -> None:
    model_dir = tmp_path / "a" / "model"
    argv = ["maestro", "train"]
    run_record.write(model_dir, {"config.gin": "A = 1\n"}, argv)
    assert run_record.write(model_dir, {"config.gin": "A = 1\n"}, argv) == []
    for number in range(11):
        run_record.write(model_dir, {"config.gin": f"A = {number + 2}\n"}, argv)
    assert (model_dir / "config.gin").read_text() == "A = 1\n"
    assert (model_dir / "config.gin.1").read_text() == "A = 2\n"
    assert run_record.latest(model_dir, "config.gin").read_text() == "A = 12\n"
    record = json.loads((model_dir / "versions.json").read_text())
    assert record["argv"] == argv
    assert set(record["packages"]) >= {"jax", "flax", "gin-config"}


def test_the_commit_of_an_archive_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that got an archive have no checkout to ask."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("MAESTRO_GIT_COMMIT", "0" * 40)
    record = provenance.versions(["maestro"])
    assert record["git"] == {"commit": "0" * 40, "changed": False}
    monkeypatch.delenv("MAESTRO_GIT_COMMIT")
    assert provenance.versions(["maestro"])["git"] is None


def test_a_directory_that_is_no_model(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no model directory"):
        gin_config.load_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no config.gin"):
        gin_config.load_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the model directory .* cannot be used"):
        run_record.write(tmp_path / "file", {}, [])


@pytest.mark.extended
def test_buckets_and_augmentation_are_set_a_stream(run_file: str) -> None:
    run = gin_config.parse_and_build(
        [
            appended(
                run_file,
                "from __gin__ import dynamic_registration\n"
                "from maestro_jax.data import augmentation\n"
                "from maestro_jax.data import streams\n"
                "paired/streams.StreamConfig.buckets = @paired/streams.Buckets()\n"
                "paired/streams.Buckets.batch_sizes = (4,)\n"
                "paired/streams.Buckets.audio_samples = (8000,)\n"
                "paired/streams.StreamConfig.augmentation = @augmentation.AudioAugmentation()\n"
                "augmentation.AudioAugmentation.speeds = (0.9, 1.0, 1.1)\n",
            )
        ]
    )
    shapes = run.streams["paired"].shapes()
    assert [(shape.batch_size, shape.audio_samples) for shape in shapes] == [(4, 8000), (2, 16000)]
    assert run.streams["paired"].augmentation.speeds == (0.9, 1.0, 1.1)
    # Its table has a line a shape; the shortest and the longest have been traced.
    lines = [line.split() for line in summary(run).splitlines() if line.startswith("paired")]
    assert [line[2:5] for line in lines] == [["4", "0.5", "8"], ["2", "1", "8"]]


def test_a_summary_leaves_out_streams_that_the_objective_does_not_use(run_file: str) -> None:
    mine = appended(
        run_file,
        "from __gin__ import dynamic_registration\n"
        "from maestro_jax import batches\n"
        "from maestro_jax.training import run\n"
        "run.TrainRun.streams = {\n"
        "  'paired': @paired/batches.StreamConfig(), 'text': @text/batches.StreamConfig()}\n"
        "text/batches.StreamConfig.mixture = 'minivox_small_text'\n"
        "text/batches.StreamConfig.batch_size = 2\n"
        "text/batches.StreamConfig.text_tokens = 8\n",
    )
    text = summary(gin_config.parse_and_build([mine], {"STEPS": "1"}))
    assert "not read, because SpeechRecognition does not use them: text" in text
    assert "minivox_small_text" not in text and "text/examples" not in text
