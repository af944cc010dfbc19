import random

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import load_vocabulary, train_sentencepiece

WORDS = "der die das haus baum zug fährt heute morgen łódź žaba niño grün été twenty three".split()


def sentences(count=400):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) for _ in range(count)]


def test_special_ids_and_round_trip(tmp_path):
    vocabulary = train_sentencepiece(sentences(), tmp_path / "v" / "v.model", 40)
    assert vocabulary.vocab_size == 40
    assert vocabulary.pieces([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    for sentence in sentences(20):
        ids = vocabulary.encode(sentence)
        assert min(ids) > 2
        assert vocabulary.decode(ids) == sentence
        assert vocabulary.decode(np.array([*ids, 1, 0, 0])) == sentence
    assert vocabulary.encode("") == []
    assert 2 in vocabulary.encode("日")
    assert vocabulary.decode([10_000, -1]) == vocabulary.decode([2, 2])


def test_training_is_deterministic_and_loading_agrees(tmp_path):
    first = train_sentencepiece(sentences(), tmp_path / "a.model", 50)
    second = train_sentencepiece(iter(sentences()), tmp_path / "b.model", 50)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert first == second == load_vocabulary(tmp_path / "a.model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_saved_into_a_model_directory(tmp_path):
    vocabulary = train_sentencepiece(sentences(), tmp_path / "a.model", 50)
    path = vocabulary.save(tmp_path / "model")
    assert path == tmp_path / "model" / "vocabulary.model"
    assert load_vocabulary(tmp_path / "model") == vocabulary


def test_a_small_corpus_gives_a_small_vocabulary(tmp_path):
    vocabulary = train_sentencepiece(["ab ba", "aa bb"] * 5, tmp_path / "v.model", 5000)
    assert 5 <= vocabulary.vocab_size < 100
    assert vocabulary.decode(vocabulary.encode("ab bb")) == "ab bb"


def test_useful_messages(tmp_path):
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece(["", "  "], tmp_path / "v.model", 50)
    with pytest.raises(UserError, match="at least"):
        train_sentencepiece(sentences(), tmp_path / "v.model", 8)
    with pytest.raises(UserError, match="no vocabulary at"):
        load_vocabulary(tmp_path / "v.model")
    (tmp_path / "v.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_vocabulary(tmp_path / "v.model")


def test_needed_size_in_the_message_is_enough(tmp_path):
    with pytest.raises(UserError) as caught:
        train_sentencepiece(sentences(), tmp_path / "v.model", 8)
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert train_sentencepiece(sentences(), tmp_path / "v.model", needed).vocab_size <= needed


def test_a_vocabulary_of_letters(tmp_path):
    vocabulary = train_sentencepiece(sentences(), tmp_path / "v.model", 64, "char")
    for text in list(sentences())[:5]:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert all(len(piece) == 1 for piece in vocabulary.pieces(ids))


def test_a_script_of_thousands_of_letters(tmp_path):
    """The coverage that the message offers is enough, and what it leaves out is unknown."""
    rng = random.Random(0)
    letters = [chr(0x4E00 + number) for number in range(3000)]
    weights = [1 / (number + 1) ** 1.5 for number in range(3000)]
    texts = ["".join(rng.choices(letters, weights, k=20)) for _ in range(10000)]
    with pytest.raises(UserError, match="at least .* or leave the rarest letters out") as caught:
        train_sentencepiece(texts, tmp_path / "v.model", 1000)
    coverage = float(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    vocabulary = train_sentencepiece(texts, tmp_path / "v.model", 1000, coverage=coverage)
    assert vocabulary.vocab_size == 1000
    ids = [token for text in texts for token in vocabulary.encode(text)]
    letters = [letter for text in texts for letter in text]
    known = {letter for letter in set(letters) if 2 not in vocabulary.encode(letter)}
    assert 1 - sum(map(known.__contains__, letters)) / len(letters) == pytest.approx(
        1 - coverage, abs=2e-3
    )
    assert 0 < ids.count(2) / len(ids) < 0.1
