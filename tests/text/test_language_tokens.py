"""What languages write, counted by hand; and the language of a text, by hand as well."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.language_tokens import LANGUAGE_TOKENS_FILE, LanguageTokens
from maestro_jax.text.vocabularies import ByteVocabulary, train_sentencepiece

TEXTS = {
    "de": ["wir hören die straße", "die straße ist schön", "über die brücke"],
    "en": ["we hear the street", "the street is beautiful", "over the bridge"],
    "sl": ["slišimo cesto", "cesta je lepa", "čez most"],
}
PAIRS = [(language, text) for language, texts in TEXTS.items() for text in texts]


@pytest.fixture(scope="module", params=["unigram", "byte"])
def vocabulary(request, tmp_path_factory):
    if request.param == "byte":
        return ByteVocabulary()
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_sentencepiece([text for _, text in PAIRS], path, 70, "unigram")


@pytest.fixture(scope="module")
def tokens(vocabulary):
    return LanguageTokens.count(PAIRS, vocabulary)


def test_a_language_writes_the_pieces_and_letters_of_its_texts(vocabulary, tokens):
    pieces = vocabulary.pieces(range(vocabulary.vocab_size))
    for language, texts in TEXTS.items():
        seen = {i for text in texts for i in vocabulary.encode(text)}
        letters = set("".join(texts))
        written = tokens.written_by(language, vocabulary.vocab_size + 5)
        for token, piece in enumerate(pieces):
            want = token in seen or token in (0, 1) or piece.strip("\u2581") in letters
            assert written[token] == want, piece
        assert not written[vocabulary.vocab_size :].any()
        # Everything that it wrote can be written again.
        assert all(written[vocabulary.encode(text)].all() for text in texts)
    if vocabulary.vocab_size < 250:
        (eszett,) = vocabulary.encode("ß")[-1:]
        assert [tokens.written_by(code, 80)[eszett] for code in TEXTS] == [True, False, False]


def test_the_language_of_a_text_is_the_likeliest(vocabulary, tokens):
    def likeliest(text):
        scores = {}
        for language, texts in TEXTS.items():
            counts = collections.Counter(i for t in texts for i in vocabulary.encode(t))
            total = sum(counts.values()) + vocabulary.vocab_size
            scores[language] = sum(
                math.log((counts[i] + 1) / total) for i in vocabulary.encode(text)
            )
        return max(scores, key=scores.__getitem__)

    for text in ["the bridge is beautiful", "die brücke", "most je lepa", "straße", "se", "über"]:
        assert tokens.identify(vocabulary.encode(text)) == likeliest(text)
    right = [tokens.identify(vocabulary.encode(text)) == language for language, text in PAIRS]
    assert sum(right) >= 7
    assert tokens.identify([]) == tokens.identify([0, 1]) == ""
    assert tokens.identify(vocabulary.encode("the"), among=["de", "sl"]) != "en"


def test_counts_are_kept_with_the_model(vocabulary, tokens, tmp_path):
    assert LanguageTokens.load(tmp_path, vocabulary) is None
    tokens.save(tmp_path)
    found = LanguageTokens.load(tmp_path, vocabulary)
    assert found.languages == tokens.languages and found.letters == tokens.letters
    for language in TEXTS:
        np.testing.assert_array_equal(found.counts[language], tokens.counts[language])
    other = train_sentencepiece(["another one"], tmp_path / "v.model", 20, "char")
    assert LanguageTokens.load(tmp_path, other) is None
    assert found.find("de-AT") == "de" and found.find("fr") is None
    with pytest.raises(UserError, match="not trained on texts in 'fr'.* de, en, sl"):
        found.written_by("fr", 80)
    (tmp_path / LANGUAGE_TOKENS_FILE).write_text("{}")
    with pytest.raises(UserError, match="is not what was written"):
        LanguageTokens.load(tmp_path, vocabulary)
