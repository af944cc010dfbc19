"""The ids of a run's languages: which they are, and that a model directory keeps them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from maestro_jax.batches import StreamConfig
from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.text.languages import LANGUAGES, LanguageTable
from maestro_jax.training.run_languages import language_capacity, run_languages

FILES = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin", "data/minivox_tiny.gin"]


@pytest.fixture(scope="module")
def run():
    return gin_config.parse_and_build(FILES, {"STEPS": "1"})


@pytest.fixture(scope="module")
def own_task():
    """A task of texts in two languages that no shipped corpus has, and in a dialect."""
    import seqio
    import tensorflow as tf

    from maestro_jax.data.stream_tasks import add_stream_task

    def dataset(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices(
            {"text": ["ab", "ba", "cab"], "language": ["quz", "ml", "de-CH"]}
        )

    add_stream_task(
        "unlisted_text",
        stream="text",
        source=seqio.FunctionDataSource(dataset, ["train"], {"train": 3}),
        languages=("quz", "ml", "de-CH"),
        vocabulary=seqio.ByteVocabulary(0),
    )
    yield "unlisted_text"
    seqio.TaskRegistry.remove("unlisted_text")


@pytest.fixture
def own_run(run, own_task):
    text = StreamConfig(mixture=own_task, batch_size=2, text_tokens=8)
    return dataclasses.replace(run, streams={**run.streams, "text": text})


def test_the_models_of_gin_have_room_for_64_languages(run) -> None:
    assert language_capacity(run.model) == 64
    assert language_capacity(object()) is None


def test_unlisted_languages_come_after_the_listed_ones(run, own_run) -> None:
    assert run_languages(run) == LanguageTable()
    assert run_languages(own_run).codes == (*LANGUAGES, "quz", "ml", "de-CH")


def test_a_model_directory_keeps_its_ids(own_run, tmp_path) -> None:
    LanguageTable(("ml", "en", "de", "sl")).save(tmp_path)
    table = run_languages(own_run, tmp_path)
    assert table.codes == ("ml", "en", "de", "sl", "quz", "de-CH")
    # A directory of an earlier version has checkpoints and no file.
    (tmp_path / "languages.txt").unlink()
    (tmp_path / "checkpoints").mkdir()
    assert run_languages(own_run, tmp_path).codes[:55] == LANGUAGES


def test_a_run_may_name_its_languages(own_run, tmp_path) -> None:
    named = dataclasses.replace(own_run, languages=("sl", "deu", "en"))
    assert run_languages(named).codes == ("sl", "de", "en", "quz", "ml", "de-CH")
    run_languages(named).save(tmp_path)
    assert run_languages(named, tmp_path) == run_languages(named)
    LanguageTable(("en", "sl")).save(tmp_path)
    with pytest.raises(UserError, match="TrainRun.languages gives other ids than .*en sl"):
        run_languages(named, tmp_path)


def test_a_model_without_room_is_refused(own_run) -> None:
    shared = dataclasses.replace(own_run.model.shared_encoder, languages=57)
    small = dataclasses.replace(own_run.model, shared_encoder=shared)
    with pytest.raises(
        UserError, match="58 languages, but .* room for 57: pass --gin.LANGUAGES=58"
    ):
        run_languages(dataclasses.replace(own_run, model=small))


def test_batches_have_the_ids_of_the_table(own_task) -> None:
    from maestro_jax.data.loader import StreamLoader

    streams = {"text": StreamConfig(mixture=own_task, batch_size=3, text_tokens=8)}
    for languages, expected in (
        (None, {"a": 55, "b": 56, "c": 57}),
        (LanguageTable(("ml", "de", "quz")), {"a": 2, "b": 0, "c": 1}),
    ):
        with StreamLoader(streams, seed=1, languages=languages) as loader:
            batches = [next(loader)["text"] for _ in range(6)]
        found = {
            chr(tokens[0] - 3): language
            for batch in batches
            for tokens, language in zip(batch["text"], batch["language"].tolist(), strict=True)
        }
        assert found == expected and batches[0]["language"].dtype == np.int32
    with (
        StreamLoader(streams, seed=1, languages=LanguageTable(("ml", "quz"))) as loader,
        pytest.raises(UserError, match="'unlisted_text'.*does not know the language 'de-CH'"),
    ):
        for _ in range(6):
            next(loader)
