"""Tokens to words, and what a search is told; no model is run."""

from __future__ import annotations

import contextlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.inference.search_config import SearchConfig
from maestro_jax.inference.timed_words import TimedToken, transcript_words
from maestro_jax.inference.transcriber import Transcriber
from maestro_jax.text.languages import LANGUAGES, LanguageTable
from maestro_jax.text.vocabularies import ByteVocabulary, Vocabulary, train_sentencepiece

MARK = "\u2581"


def timed(*pieces):
    return [TimedToken(text=p, start=0.5 * i, score=-1.0 - i) for i, p in enumerate(pieces)]


def test_letters_and_lone_marks_make_words():
    words = transcript_words(timed(MARK, "o", "n", "e", MARK, "t", "o"))
    assert [(w.text, w.start) for w in words] == [("one", 0.5), ("to", 2.5)]
    assert [w.score for w in words] == [-1 - 2 - 3 - 4, -5 - 6 - 7]


def test_pieces_with_marks_make_words():
    words = transcript_words(timed(MARK + "twen", "ty", MARK + "one", MARK))
    assert [(w.text, w.start, w.score) for w in words] == [
        ("twenty", 0.0, -3.0),
        ("one", 1.0, -3.0),
    ]
    assert transcript_words([]) == [] and transcript_words(timed(MARK)) == []
    # A translation may begin within a word.
    assert [w.text for w in transcript_words(timed("ty", MARK + "one"))] == ["ty", "one"]


def test_bytes_make_letters_of_words():
    pieces = ByteVocabulary().pieces(ByteVocabulary().encode("été 日本"))
    words = transcript_words(timed(*pieces))
    assert [(w.text, w.start) for w in words] == [("été", 0.0), ("日本", 3.0)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.model"
    return train_sentencepiece(["one two three", "four five six"], path, 40, "char")


def test_a_text_becomes_a_model_of_it(vocabulary, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one one one\n\none one\n", encoding="utf-8")
    assert SearchConfig(beam_size=4).language_model(vocabulary, 64) is None
    assert SearchConfig(beam_size=4).fusion(None) is None
    assert SearchConfig(length_bonus=0.5).fusion(None).lm is None
    search = SearchConfig(lm_text=text, lm_weight=0.7, length_bonus=0.1)
    fusion = search.fusion(search.language_model(vocabulary, 64))
    assert (fusion.weight, fusion.length_bonus) == (0.7, 0.1)
    state = fusion.lm.initial_state(1)
    label, heard = 0, []
    for _ in range(4):
        scores, state = fusion.lm.score(state, jnp.asarray([label]))
        assert scores.shape == (1, 64)
        label = int(np.argmax(scores[0]))
        heard.append(label)
    assert vocabulary.decode(heard) == "one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "at least 1, not 0"),
        ({"lm_text": "nowhere.txt"}, "nowhere.txt"),
        ({"lm_weight": -1.0}, "lm_weight is -1.0; it must be 0 or more"),
        ({"lm_weight": float("nan")}, "lm_weight is nan; it must be 0 or more"),
        ({"lm_text": "empty"}, "no text in"),
        ({"lm_text": "latin"}, "cannot read"),
    ],
)
def test_bad_options_are_one_clear_line(vocabulary, tmp_path, options, message):
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    if "lm_text" in options:
        options = options | {"lm_text": tmp_path / options["lm_text"]}
    with pytest.raises(UserError, match=message) as error:
        search = SearchConfig(**options)
        search.fusion(search.language_model(vocabulary, 64))
    assert "\n" not in str(error.value)


def test_rows_may_ask_for_different_languages():
    told = []

    def search(function, params, **inputs):
        told.append(inputs.get("target_language"))
        return types.SimpleNamespace(truncated=np.zeros((2, 1)))

    transcriber = object.__new__(Transcriber)
    transcriber.params, transcriber._mesh, transcriber._decode = None, None, None
    transcriber._program = lambda function, placed: search
    transcriber.rescoring, transcriber.languages = None, LanguageTable()
    transcriber.run = types.SimpleNamespace(
        model=types.SimpleNamespace(needs_language=False),
        partitioning=types.SimpleNamespace(
            activate=contextlib.nullcontext, shard_batch=lambda mesh, inputs: inputs
        ),
    )
    features = {"audio": np.zeros((2, 8), np.int16), "audio_length": np.zeros(2, np.int32)}
    ids = np.array([LANGUAGES.index("zh"), LANGUAGES.index("de")], np.int32)
    for target in (None, "zh", ids):
        transcriber.search(features, target)
    assert told[0] is None
    assert told[1].tolist() == [LANGUAGES.index("zh")] * 2
    assert told[2].tolist() == ids.tolist()
