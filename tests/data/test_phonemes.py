"""Pronunciation: known words, other speakers beside it, and tasks that read phonemes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.espeak import phonemes, synthesise


def test_words_that_are_known() -> None:
    # As dictionaries have them, without stress.
    assert phonemes(["cat", "sing"], "en") == ["kat", "sɪŋ"]
    assert phonemes(["Schiff", "dies ist"], "de") == ["ʃɪf", "diːs ɪst"]
    assert phonemes(["kot", ""], "pl") == ["kɔt", ""]
    # Spelled alike, said otherwise; spelled otherwise, said alike.
    assert phonemes(["chat"], "fr") != phonemes(["chat"], "en")
    [two] = {*phonemes(["peace", "piece"], "en")}
    assert two.isalpha()
    with pytest.raises(UserError, match="has no pronunciation of 'xx'"):
        phonemes(["x"], "xx")


def test_long_texts_are_read_to_their_end() -> None:
    text = ", and then. ".join(["the cat sings"] * 300)
    [found] = phonemes([text], "en")
    [once] = phonemes(["cat"], "en")
    assert found.split().count(once) == 300


def test_neither_order_nor_speaking_changes_anything() -> None:
    texts = {"en": ["one two", "read the record"], "de": ["eins zwei"], "sl": ["ena dve"]}
    alone = {language: phonemes(own, language) for language, own in texts.items()}
    spoken = synthesise("one two", "en").audio
    for language, own in reversed(texts.items()):
        assert list(reversed(phonemes(own[::-1], language))) == alone[language]
    np.testing.assert_array_equal(synthesise("one two", "en").audio, spoken)


def test_a_task_of_phonemes(corpus, tmp_path) -> None:
    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.stream_tasks import PreparedVocabulary
    from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary
    from maestro_jax.tasks.corpus_tasks import add_corpus_task
    from maestro_jax.text.vocabularies import load_vocabulary

    task = add_corpus_task(
        "tinyvox",
        "small",
        stream="paired",
        language="de",
        splits={"train": "paired_de_train"},
        vocabulary=PreparedVocabulary("vocabularies/ipa.model", "make it"),
        name="tinyvox_paired_de_phonemes",
        phonemes=True,
    )
    request = VocabularyRequest(tasks=(task.name,), kind="char")
    path = train_vocabulary("ipa", request, data_dir=corpus.root).path
    vocabulary = load_vocabulary(path)
    streams = {
        "paired": StreamConfig(mixture=task.name, batch_size=13, audio_samples=450, text_tokens=60)
    }
    with StreamLoader(streams, seed=0, data_dir=corpus.root) as loader:
        [batch] = itertools.islice(loader, 1)
    found = {
        vocabulary.decode(tokens[:length])
        for tokens, length in zip(
            batch["paired"]["text"], batch["paired"]["text_length"], strict=True
        )
    }
    written = [record["text"] for record in corpus.records["paired_de_train"]]
    assert found == set(phonemes(written, "de"))
