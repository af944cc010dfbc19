"""What the languages of prepared tasks write, counted from their records."""

from __future__ import annotations

import collections
import types

from maestro_jax.data.data_dir import data_scope
from maestro_jax.data.language_texts import language_texts
from maestro_jax.text.language_tokens import LanguageTokens
from maestro_jax.text.vocabularies import load_vocabulary
from maestro_jax.training.run_language_tokens import run_language_tokens


def test_texts_of_each_language_come_from_training_records(corpus):
    with data_scope(corpus.root):
        found = collections.Counter(language_texts(["tinyvox_text", "tinyvox_speech"]))
    want = collections.Counter()
    for split, records in corpus.records.items():
        if split.startswith("text_") and split.endswith("_train"):
            want.update((record["language"], record["text"]) for record in records)
    assert found == want and sum(want.values()) > 10
    with data_scope(corpus.root):
        few = list(language_texts(["tinyvox_text"], sentences=2))
    per_language = collections.Counter(language for language, _ in few)
    assert set(per_language.values()) == {2}
    assert all((language, text) in want for language, text in few)


def test_a_model_directory_keeps_them(corpus, tmp_path):
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    run = types.SimpleNamespace(
        streams={"paired": types.SimpleNamespace(mixture="tinyvox_paired")}, used_streams=["paired"]
    )
    found = run_language_tokens(run, vocabulary, tmp_path, corpus.root)
    kept = LanguageTokens.load(tmp_path, vocabulary)
    assert kept.languages == found.languages and len(found.languages) > 1
    # Read again, they need no data.
    assert run_language_tokens(run, vocabulary, tmp_path, "nowhere").languages == found.languages
    # Without data there is nothing to say, and nothing breaks.
    assert run_language_tokens(run, vocabulary, tmp_path / "other", tmp_path / "empty") is None
