"""Bytes as tokens: seqio's ids, and the place of a SentencePiece model wherever there is one."""

import numpy as np
import pytest

from maestro_jax.inference.aligner import encode_transcript
from maestro_jax.text.vocabularies import (
    BYTE_MODEL,
    ByteVocabulary,
    load_vocabulary,
    train_sentencepiece,
)

TEXTS = ["twenty three", "Łódź, žaba", "été\tà  Noël", "日本語 👍", ""]
BYTES = ByteVocabulary()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_seqio_s(text):
    import seqio

    theirs = seqio.ByteVocabulary()
    ids = BYTES.encode(text)
    assert ids == list(theirs.encode(text))
    assert BYTES.decode(ids) == text == theirs.decode(ids)
    assert BYTES.decode(np.array([*ids, 1, 0, 0])) == text
    assert BYTES.vocab_size == theirs.vocab_size == 259
    assert len(BYTES.pieces(ids)) == len(ids)


def test_what_is_no_text_is_left_out_as_seqio_does():
    import seqio

    broken = [*BYTES.encode("a"), 0xC3 + 3, 2, 700, *BYTES.encode("b")]
    assert BYTES.decode(broken) == seqio.ByteVocabulary().decode(broken) == "ab"


def test_pieces():
    assert BYTES.pieces([0, 1, 2, *BYTES.encode("a é")]) == [
        *("<pad>", "</s>", "<unk>"),
        *("a", "\u2581", "<0xC3>", "<0xA9>"),
    ]
    with pytest.raises(IndexError, match="259"):
        BYTES.pieces([259])


def test_saved_into_a_model_directory(tmp_path):
    path = BYTES.save(tmp_path / "model")
    assert path == tmp_path / "model" / "vocabulary.model"
    loaded = load_vocabulary(tmp_path / "model")
    assert isinstance(loaded, ByteVocabulary)
    assert loaded == BYTES and hash(loaded) == hash(BYTES)
    letters = train_sentencepiece(["ab ba"] * 5, tmp_path / "letters.model", 60)
    assert loaded != letters != loaded


def test_every_text_can_be_aligned():
    assert encode_transcript(BYTES, "Été, 20!", "fr") == BYTES.encode("Été, 20!")


def test_tasks_read_bytes(corpus, tmp_path):
    import shutil

    import seqio

    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.stream_tasks import token_vocabulary

    shutil.copytree(corpus.root / "tinyvox", tmp_path / "tinyvox")
    file = tmp_path / "vocabularies" / "tinyvox.model"
    file.parent.mkdir()
    file.write_bytes(BYTE_MODEL)
    with data_scope(tmp_path):
        task = seqio.TaskRegistry.get("tinyvox_text_sl")
        example = next(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
        text = example["text_pretokenized"].decode()
        assert example["text"].tolist() == BYTES.encode(text)
        assert token_vocabulary(task.output_features, "it") == BYTES
