"""Language models of files: text and the same model as ARPA, other pieces, words, rescoring."""

from __future__ import annotations

import gzip

import jax
import numpy as np
import pytest

from maestro_jax.decoding.hypotheses import Hypotheses
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.errors import UserError
from maestro_jax.inference.language_models import (
    Rescoring,
    WordLm,
    arpa_model,
    text_model,
    write_model,
)
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.text.vocabularies import Vocabulary, train_sentencepiece

SENTENCES = ["one two three", "two three", "one one two", "three two one two"]
WORDS = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-0.9 <unk>
-99 <s> -0.5
-0.8 </s>
-0.6 ONE -0.2
-0.7 TWO -0.3

\\2-grams:
-0.1 <s> ONE
-0.2 ONE TWO
-0.3 TWO </s>

\\end\\
"""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_sentencepiece(SENTENCES, path, 30, "bpe")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_a_text_and_its_model_in_a_file_are_one_model(name, vocabulary, text, tmp_path):
    write_model(text_model(text, vocabulary, order=3), tmp_path / name, vocabulary)
    searches = (
        SearchConfig(lm_text=text, lm_order=3, beam_size=4),
        SearchConfig(lm_arpa=tmp_path / name, beam_size=4),
    )
    first, second = (search.language_model(vocabulary, 64) for search in searches)
    assert isinstance(first, NgramLm) and first.dense.shape[1] == 64
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)


def test_a_compressed_text_is_a_text(vocabulary, text, tmp_path):
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    models = [text_model(path, vocabulary, order=2) for path in (text, packed)]
    np.testing.assert_array_equal(models[0].levels[1].log_probs, models[1].levels[1].log_probs)


def test_cut_offs_make_it_smaller(vocabulary, text):
    counts = [
        text_model(text, vocabulary, order=3, prune=prune).counts for prune in ((), (0, 0, 1))
    ]
    assert counts[0][:2] == counts[1][:2] and counts[0][2] > counts[1][2]


def test_a_model_over_other_pieces_is_one_clear_line(vocabulary, text, tmp_path):
    other = train_sentencepiece(SENTENCES, tmp_path / "other.model", 20, "bpe")
    write_model(text_model(text, vocabulary, order=2), tmp_path / "lm.arpa", vocabulary)
    with pytest.raises(UserError, match="pieces of another vocabulary: .* tokens") as error:
        SearchConfig(lm_arpa=tmp_path / "lm.arpa").language_model(other, 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_text": "lm.arpa"}, "in the ARPA format: give it as --lm_arpa"),
        ({"lm_arpa": "text.txt"}, "text.txt has no line .data.*--lm_text"),
        ({"lm_arpa": "lm.arpa", "lm_text": "text.txt"}, "two language models"),
        ({"lm_arpa": "words.arpa"}, "words, which ranks .* --beam_size 8"),
        ({"lm_text": "text.txt", "lm_prune": (0, 1, 0)}, "must not decrease"),
    ],
)
def test_bad_options_are_one_clear_line(options, message, vocabulary, text, tmp_path):
    write_model(text_model(text, vocabulary, order=2), tmp_path / "lm.arpa", vocabulary)
    (tmp_path / "words.arpa").write_text(WORDS)
    paths = {k: tmp_path / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(UserError, match=message) as error:
        SearchConfig(**paths).language_model(vocabulary, 64)
    assert "\n" not in str(error.value)


def test_a_decoder_with_fewer_outputs_is_another_vocabularys(vocabulary, text):
    with pytest.raises(UserError, match="the vocabulary of another model"):
        SearchConfig(lm_text=text).language_model(vocabulary, 8)


def test_words_have_the_probabilities_of_the_file(vocabulary, tmp_path):
    (tmp_path / "words.arpa").write_text(WORDS)
    lm = arpa_model(tmp_path / "words.arpa", vocabulary)
    assert isinstance(lm, WordLm)
    for text, log10 in [
        ("one two", -0.1 - 0.2 - 0.3),
        ("One, two!", -0.1 - 0.2 - 0.3),  # The model's case, and no punctuation.
        ("two", -0.5 - 0.7 - 0.3),
        ("one four", -0.1 - 0.2 - 0.9 - 0.8),  # An unknown word has no weight to back off by.
        ("", -0.5 - 0.8),
    ]:
        np.testing.assert_allclose(lm.log_prob(text), log10 * np.log(10), rtol=1e-6)


def hypotheses(scores, lengths):
    """Hypotheses whose tokens are their old rank."""
    shape = np.shape(scores)
    tokens = np.broadcast_to(np.arange(shape[1])[:, None], (*shape, 2))
    numbers = np.asarray(scores, np.float32)
    return Hypotheses(
        tokens, np.asarray(lengths), tokens, tokens.astype(np.float32), numbers, numbers,
        np.zeros(shape, bool),
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_hypotheses_are_ranked_by_both(alpha, vocabulary, tmp_path):
    (tmp_path / "words.arpa").write_text(WORDS)
    lm = arpa_model(tmp_path / "words.arpa", vocabulary)
    texts = [["two one", "one two", ""], ["one", "", ""]]
    found = hypotheses([[-1.0, -1.5, -np.inf], [-2.0, -np.inf, -np.inf]], [[9, 9, 0], [4, 0, 0]])
    ranked = Rescoring(lm=lm, weight=0.5, length_alpha=alpha)(found, texts)
    assert ranked.tokens[0, :, 0].tolist() == [1, 0, 2]
    assert ranked.scores[0].tolist() == [-1.5, -1.0, -np.inf]
    # -0.1 - 0.2 - 0.3 for the words and the end; ten tokens with the end of the text.
    want = -1.5 - 0.5 * 0.6 * np.log(10) / (15 / 6) ** alpha
    np.testing.assert_allclose(ranked.fused_scores[0, 0], want, rtol=1e-6)
    assert ranked.tokens[1, 0, 0] == 0
