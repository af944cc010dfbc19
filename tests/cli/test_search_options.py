"""`--beam_size` and its kin, on the command line and through a model that was never trained."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import soundfile

from maestro_jax.cli import main as cli
from maestro_jax.evaluation.run_evaluation import RunScores
from maestro_jax.gin_utils import gin_config, run_record
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.text.language_tokens import LanguageTokens
from maestro_jax.text.vocabularies import load_vocabulary, train_sentencepiece
from maestro_jax.training.checkpoints import Checkpoints
from maestro_jax.training.parameter_trees import unbox
from maestro_jax.training.state import create_state, initial_params


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["transcribe", "m", "a.wav", "--beam_size", "0"], "'0' is not a whole number above 0"),
        (["transcribe", "m", "a.wav", "--nbest", "3"], "--beam_size 3"),
        (["eval", "--beam_size", "many"], "'many' is not a whole number above 0"),
        (["transcribe", "m", "a.wav", "--beem_size", "2"], "Did you mean '--beam_size'"),
    ],
)
def test_bad_input_is_one_line(argv, expected, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) != 0
    error = capsys.readouterr().err.strip()
    assert expected in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def described(
    run_file: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> pathlib.Path:
    """A model directory with a configuration and nothing else."""
    # Nothing is written below the home directory.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    gin_config.parse([run_file], {"STEPS": "1"})
    directory = tmp_path / "model"
    run_record.write(directory, {"config.gin": gin_config.config_text()}, ["maestro"])
    return directory


@pytest.fixture
def model_dir(described: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory as training leaves it, with random weights that have much to say."""
    run, directory = gin_config.load_run(described), described
    # Fewer pieces than the decoder has outputs, as happens with a corpus of little variety.
    train_sentencepiece(["ab ba cab", "abc da"], tmp_path / "v.model", 12, "char").save(directory)
    params = jax.jit(
        lambda: unbox(initial_params(run.model, run.objective, run.batch_shapes(), 0))
    )()
    params["decoder"]["output"]["kernel"] *= 20
    state = create_state(params, run.optimizer).replace(ema_params=params)
    checkpoints = Checkpoints(directory)
    checkpoints.save(state, {"step": 1})
    checkpoints.close()
    return directory


@pytest.mark.extended
def test_times_scores_and_alternatives(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech, text = tmp_path / "speech.wav", tmp_path / "text.txt"
    # Longer than the second that the model takes, with a pause, so that there are two segments.
    level = np.concatenate([np.hanning(9_000), np.zeros(5_000), np.hanning(10_000)])
    noise = 0.1 * level * np.random.default_rng(0).normal(size=24_000)
    soundfile.write(speech, noise, 16_000, subtype="PCM_16")
    text.write_text("ab ba\ncab\n")
    command = ["transcribe", str(model_dir), str(speech)]

    assert cli.main([*command, "--json", "--beam_size", "3"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["segments"] == len(record["alternatives"]) == 2
    assert record["tokens"] and record["words"]
    assert [unit["start"] for unit in record["tokens"]] == sorted(
        unit["start"] for unit in record["tokens"]
    )
    assert record["tokens"][-1]["start"] <= record["seconds"] == 1.5
    for segment in record["alternatives"]:
        fused = [one["fused_score"] for one in segment]
        assert 1 < len(fused) <= 3 and fused == sorted(fused, reverse=True)
        assert fused == [one["score"] for one in segment]
    best = [segment[0] for segment in record["alternatives"]]
    assert record["text"].split() == " ".join(one["text"] for one in best).split()
    assert "  " not in record["text"]
    assert record["score"] == pytest.approx(sum(one["score"] for one in best))
    second = len(best[0]["tokens"])
    assert record["tokens"][second]["start"] > best[1]["tokens"][0]["start"] + 0.4

    assert cli.main([*command, "--beam_size", "3", "--nbest", "2", "--timestamps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == record["text"]
    words = lines[1 : 1 + len(record["words"])]
    assert [line.split()[2] for line in words] == [word["text"] for word in record["words"]]
    rest = [line.strip() for line in lines[1 + len(words) :]]
    assert [rest[0], rest[3]] == ["segment 1", "segment 2"] and len(rest) == 6

    language = ["--lm_text", str(text), "--lm_weight", "2"]
    assert cli.main([*command, "--json", "--beam_size", "3", *language]) == 0
    (fused_record,) = json.loads(capsys.readouterr().out)
    one = fused_record["alternatives"][0][0]
    assert one["fused_score"] < one["score"]


def test_evaluation_searches_as_told(
    described: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}

    def evaluate_run(run, **options):
        told.update(options)
        return RunScores(())

    monkeypatch.setattr("maestro_jax.evaluation.run_evaluation.evaluate_run", evaluate_run)
    assert cli.main(["eval", "--model_dir", str(described), "--beam_size", "5"]) == 0
    assert told["search"] == SearchConfig(beam_size=5)
    file = str(described / "config.gin")
    made = ["--lm_text", file, "--lm_order", "3", "--lm_prune", "0,0,1"]
    assert cli.main(["eval", "--model_dir", str(described), *made]) == 0
    assert told["search"] == SearchConfig(lm_text=file, lm_order=3, lm_prune=(0, 0, 1))
    assert cli.main(["eval", "--model_dir", str(described), "--lm_arpa", file]) == 0
    assert told["search"] == SearchConfig(lm_arpa=file)
    internal = ["--ilm_weight", "0.3", "--ilm_encoder", "mean"]
    assert cli.main(["eval", "--model_dir", str(described), *internal]) == 0
    assert told["search"] == SearchConfig(ilm_weight=0.3, ilm_encoder="mean")
    # A gin file may say the same; an option is stronger.
    search = described.parent / "mine.gin"
    search.write_text(
        "from __gin__ import dynamic_registration\n"
        "from maestro_jax.evaluation import search_config\n"
        "search_config.SearchConfig:\n  beam_size = 4\n  ilm_weight = 0.2\n"
    )
    configured = ["eval", "--model_dir", str(described), "--gin_file", str(search)]
    assert cli.main([*configured, "--beam_size", "8"]) == 0
    assert dataclasses.asdict(told["search"]) == dataclasses.asdict(
        SearchConfig(beam_size=8, ilm_weight=0.2)
    )
    for extra, expected in [
        (["--lm_weight", "0.5"], "--lm_text FILE"),
        (["--lm_text", "nowhere.txt"], "no file nowhere.txt for --lm_text"),
        (["--lm_arpa", "nowhere.arpa"], "no file nowhere.arpa for --lm_arpa"),
        (["--lm_arpa", "a", "--lm_text", "b"], "give only one of them"),
        (["--lm_arpa", "a", "--lm_order", "3"], "--lm_order needs --lm_text FILE"),
        (["--lm_prune", "0,0,1"], "--lm_prune needs --lm_text FILE"),
        (["--lm_prune", "0,-1"], "'0,-1' is not whole numbers"),
        (
            ["--lm_text", str(described / "config.gin"), "--lm_weight", "-1"],
            "is -1.0; it must be 0 or more",
        ),
        (["--length_bonus", "inf"], "--length_bonus is inf; it must be finite"),
        (["--ilm_weight", "-0.1"], "--ilm_weight is -0.1; it must be 0 or more"),
        (["--ilm_encoder", "meen"], "unknown --ilm_encoder 'meen'; choose one of zero, mean"),
    ]:
        capsys.readouterr()
        assert cli.main(["eval", "--model_dir", str(described), *extra]) != 0
        error = capsys.readouterr().err.strip()
        assert expected in error and len(error.splitlines()) == 1


@pytest.mark.extended
def test_one_loaded_model_searches_with_any_weights(
    model_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """`set_search` gives what loading with those settings gives, and compiles less."""
    run = gin_config.load_run(model_dir)
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("cab\nda\t2\n")
    text = tmp_path / "text.txt"
    text.write_text("ab ba\ncab\n")
    files = {"phrases": phrases, "lm_text": text, "lm_order": 2}
    rng = np.random.default_rng(0)
    features = {
        "audio": (3000 * rng.normal(size=(8, 4_000))).astype(np.int16),
        "audio_length": np.full(8, 4_000, np.int32),
    }
    first = SearchConfig(**files, beam_size=2, lm_weight=0.4, blank_penalty=1.0)
    other = dataclasses.replace(first, lm_weight=1.1, phrases_weight=2.0, blank_penalty=-1.5)
    one = Transcriber.from_checkpoint(model_dir, run, search=first)
    before, key = one.search(features), one._key
    one.set_search(other)
    found = one.search(features)
    want = Transcriber.from_checkpoint(model_dir, run, search=other).search(features)
    for name in found._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), err_msg=name)
    assert not np.array_equal(found.tokens, before.tokens)
    assert len(one._programs) == 1
    for changed in ({"beam_size": 3}, {"ilm_weight": 0.2}, {"length_bonus": -0.1}):
        one.set_search(dataclasses.replace(other, **changed))
        assert one._key != key
    one.set_search(dataclasses.replace(other, lm_weight=0.2))
    assert one._key == key


@pytest.mark.extended
def test_a_transcript_has_what_its_language_writes(
    model_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speech = tmp_path / "speech.wav"
    noise = 0.1 * np.hanning(16_000) * np.random.default_rng(0).normal(size=16_000)
    soundfile.write(speech, noise, 16_000, subtype="PCM_16")
    command = ["transcribe", str(model_dir), str(speech), "--json"]

    def transcript(*options: str) -> dict:
        assert cli.main([*command, *options]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        return record

    free = transcript()
    assert not set(free["text"]) <= set("ab ") and free["heard"] == ""
    assert cli.main([*command, "--language", "de"]) != 0
    assert "has no language_tokens.json; run `maestro eval" in capsys.readouterr().err

    vocabulary = load_vocabulary(model_dir)
    texts = [("de", "ab ba"), ("en", "cab dad")]
    LanguageTokens.count(texts, vocabulary).save(model_dir)
    german = transcript("--language", "de")
    assert set(german["text"]) <= set("ab ") and german["text"]
    assert german["heard"] == "de"
    assert cli.main([*command, "--language", "fr"]) != 0
    assert "not trained on texts in 'fr'" in capsys.readouterr().err
