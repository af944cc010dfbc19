import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.vocabularies import load_vocabulary


def batches(corpus, name, split="test", batch_size=4, audio_samples=450, **arguments):
    from maestro_jax.data.evaluation_batches import evaluation_batches

    return list(
        evaluation_batches(name, split, batch_size, audio_samples, corpus.root, **arguments)
    )


def test_every_example_once_in_order(corpus):
    found = batches(corpus, "tinyvox_paired")
    records = corpus.records["paired_de_test"] + corpus.records["paired_sl_test"]
    assert [len(metadata) for _, metadata in found] == [4, 2]
    row = 0
    for features, metadata in found:
        assert set(features) == {"audio", "audio_length", "language"}
        assert features["audio"].shape == (4, 450)
        assert features["audio"].dtype == np.int16
        for place, strings in enumerate(metadata):
            record = records[row]
            row += 1
            length = features["audio_length"][place]
            np.testing.assert_array_equal(features["audio"][place, :length], record["audio"])
            assert LANGUAGES[features["language"][place]] == record["language"]
            for key in ("id", "text", "raw_text", "translation", "language", "speaker"):
                assert strings[key] == record[key]
            assert strings["task"] == f"tinyvox_paired_{record['language']}"
        assert not features["audio_length"][len(metadata) :].any()
    assert row == len(records)


def test_tokens_and_translations_when_asked_for(corpus):
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    for features, metadata in batches(corpus, "tinyvox_st_de", translation_tokens=40):
        assert (features["target_language"][: len(metadata)] == LANGUAGES.index("en")).all()
        for place, strings in enumerate(metadata):
            length = features["translation_length"][place]
            ids = features["translation"][place, :length]
            assert vocabulary.decode(ids) == strings["translation"]
            assert strings["text"]


def test_over_long_examples_keep_their_metadata(corpus, caplog):
    found = batches(corpus, "tinyvox_paired_de", audio_samples=150)
    lengths = np.concatenate([features["audio_length"][: len(m)] for features, m in found])
    true = [len(record["audio"]) for record in corpus.records["paired_de_test"]]
    assert lengths.tolist() == [length if length <= 150 else 0 for length in true]
    assert f"{sum(length > 150 for length in true)} examples" in caplog.text


def test_useful_messages(corpus, tmp_path):
    from maestro_jax.data.evaluation_batches import evaluation_batches

    with pytest.raises(UserError, match="Did you mean"):
        batches(corpus, "tinyvox_piared")
    with pytest.raises(UserError, match="no split 'dev'"):
        batches(corpus, "tinyvox_paired", split="dev")
    with pytest.raises(UserError, match="padded length"):
        batches(corpus, "tinyvox_mt", split="train")
    with pytest.raises(UserError, match="run `maestro prepare tinyvox`"):
        evaluation_batches("tinyvox_paired", "test", 2, 450, tmp_path)
