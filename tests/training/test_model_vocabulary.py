"""A checkpoint knows the vocabulary that it was trained with, and refuses another one."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from etils import epath

from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import ByteVocabulary, Vocabulary, train_sentencepiece
from maestro_jax.training.model_vocabulary import (
    check_vocabulary,
    load_model_vocabulary,
    save_vocabulary,
    token_names,
)
from maestro_jax.training.saved_checkpoints import saved_record
from maestro_jax.training.trainer import train


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> dict[str, Vocabulary]:
    directory = tmp_path_factory.mktemp("vocabularies")
    texts = {
        "own": "ab ba cab",
        "same size": "xy yx zyx",
        "smaller": "ab",
        "larger": "the lazy dog",
    }
    return {
        name: train_sentencepiece([text], directory / f"{name}.model", 40, "char")
        for name, text in texts.items()
    }


@pytest.fixture(scope="module")
def trained(toy, vocabularies, tmp_path_factory):
    """A model that writes 16 tokens, and its vocabulary of seven pieces."""
    directory = tmp_path_factory.mktemp("trained")
    vocabularies["own"].save(directory)
    train(toy.run(steps=1), directory, batches=toy.batches)
    return directory


@pytest.fixture
def model_dir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def test_the_record_names_the_file(trained, vocabularies) -> None:
    record = saved_record(trained / "checkpoints" / "1")["vocabulary"]
    content = (trained / "vocabulary.model").read_bytes()
    assert record == {"pieces": 7, "sha256": hashlib.sha256(content).hexdigest()}
    for path in (trained, trained / "checkpoints" / "1"):
        assert load_model_vocabulary(path, 16) == vocabularies["own"]


@pytest.mark.parametrize("other", ["same size", "smaller", "larger", "bytes"])
def test_another_vocabulary_is_refused(model_dir, vocabularies, other) -> None:
    vocabulary = {**vocabularies, "bytes": ByteVocabulary()}[other]
    vocabulary.save(model_dir)
    with pytest.raises(UserError, match="vocabulary.model is not the vocabulary that .* was") as e:
        load_model_vocabulary(model_dir, 16)
    assert f"it has {vocabulary.vocab_size} pieces" in str(e.value) and "\n" not in str(e.value)


def test_older_checkpoints_are_compared_by_size(model_dir, vocabularies, caplog) -> None:
    step_directory = model_dir / "checkpoints" / "1"
    record = step_directory / "data" / "metadata"
    record.write_text(json.dumps({**json.loads(record.read_text()), "vocabulary": None}))
    for name in ("files.json", "arrays.json"):
        (step_directory / name).unlink()
    with caplog.at_level("INFO"):
        assert load_model_vocabulary(model_dir, 16) == vocabularies["own"]
    assert "has 7 pieces, the model 16 tokens" in caplog.text
    train_sentencepiece(["the lazy dog"], model_dir / "vocabulary.model", 40, "char")
    with pytest.raises(UserError, match="writes 12 tokens: it is the vocabulary of another model"):
        load_model_vocabulary(model_dir, 12)


def test_training_goes_on_with_the_same_one_only(toy, model_dir, vocabularies) -> None:
    directory = epath.Path(model_dir)
    check_vocabulary(toy.run(), vocabularies["own"], directory)
    with pytest.raises(UserError, match="is not the vocabulary of this run's data"):
        check_vocabulary(toy.run(), vocabularies["same size"], directory)
    # Nor if the file was replaced as well.
    vocabularies["same size"].save(model_dir)
    with pytest.raises(UserError, match="trained with another vocabulary .*7 and 7 pieces"):
        check_vocabulary(toy.run(), vocabularies["same size"], directory)


def test_a_start_from_it_needs_no_file(toy, model_dir, vocabularies, tmp_path) -> None:
    (model_dir / "vocabulary.model").unlink()
    run = toy.run(init_from=str(model_dir))
    with pytest.raises(UserError, match="is another vocabulary than this run's"):
        check_vocabulary(run, vocabularies["same size"], epath.Path(tmp_path))
    check_vocabulary(run, vocabularies["own"], epath.Path(tmp_path))


def test_a_damaged_file_is_written_again_and_no_other(toy, model_dir, vocabularies, caplog) -> None:
    path, directory = model_dir / "vocabulary.model", epath.Path(model_dir)
    content = path.read_bytes()
    before = path.stat()
    check_vocabulary(toy.run(), vocabularies["own"], directory)
    save_vocabulary(vocabularies["own"], directory)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    path.write_bytes(content[:20])
    check_vocabulary(toy.run(), vocabularies["own"], directory)
    assert "vocabulary.model is damaged, and is written again" in caplog.text
    save_vocabulary(vocabularies["own"], directory)
    assert path.read_bytes() == content and path.stat().st_ino != before.st_ino


def test_tokens_have_names_whatever_the_vocabulary(vocabularies, tmp_path) -> None:
    tokens = np.asarray([0, 1, 3, 6, 200], np.int32)
    assert token_names(tmp_path, tokens) == ["0", "1", "3", "6", "200"]
    vocabularies["own"].save(tmp_path)
    assert token_names(tmp_path, tokens) == [*vocabularies["own"].pieces([0, 1, 3, 6]), "200"]
    ByteVocabulary().save(tmp_path)
    assert token_names(tmp_path, tokens) == ByteVocabulary().pieces(tokens.tolist())
