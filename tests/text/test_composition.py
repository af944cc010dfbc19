"""Vocabularies give texts of all scripts back as they are, in composed Unicode."""

from __future__ import annotations

import io
import unicodedata

import pytest
import sentencepiece

from maestro_jax.data.vocabulary_training import measured
from maestro_jax.text.characters import spelled
from maestro_jax.text.vocabularies import (
    SentencePieceVocabulary,
    Vocabulary,
    train_sentencepiece,
)

TEXTS = {
    "Persian, with joiners": "این کتاب\u200cها را می\u200cخواهم.",
    "Arabic, presentation forms": "\ufefb \ufe8d\ufedf\ufee4",
    "Chinese, full width": "他说：“２０元（大约三欧元）！”",
    "compatibility ideographs": "\uf93d 綠 \u3392",
    "Japanese, half width": "ｶﾞ ガ ヷ",
    "Korean, syllables and jamo": "한국어 \u3131\u314f 각",
    "Lao": "ນ້ຳ ໜ",
    "Thai": "น้ำ กำ",
    "Devanagari, nukta": "\u0958लम ज़रा",
    "Bengali": "\u09dc কো",
    "Vietnamese": "tiếng Việt, ệ Ộ ữ",
    "ligatures and fractions": "ﬁ ½ № ² ℃ …",
    "Turkish and Greek": "İı ΐ ᾧ \u1fbe",
    "no-break spaces": "«\u00a0oui\u202f! »\u3000x",
    "mathematics": "𝒳 = x²",
}


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "letters.model"
    return train_sentencepiece(TEXTS.values(), path, 1000, "char")


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_text_of_either_form_comes_back_composed(letters, script, form) -> None:
    text = unicodedata.normalize(form, TEXTS[script])
    expected = " ".join(unicodedata.normalize("NFC", text).split())
    assert letters.decode(letters.encode(text)) == expected


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_pieces_of_words_spell_alike(tmp_path, kind) -> None:
    vocabulary = train_sentencepiece(TEXTS.values(), tmp_path / "pieces.model", 400, kind)
    rows = measured(vocabulary, TEXTS.values(), "fa")
    assert (rows["changed"], rows["round_trip_error"], rows["round_trip_bleu_loss"]) == (0, 0, 0)


def test_every_composed_character_is_composed(tmp_path) -> None:
    """All characters with a canonical decomposition, against Python's own composition."""
    characters = [
        character
        for code in range(0x20, 0x30000)
        if unicodedata.decomposition(character := chr(code))[:1] not in ("", "<")
    ]
    characters += [chr(code) for code in range(0xAC00, 0xD7A4, 97)]
    everything = spelled(" ".join(["b", "\u1ec7", *characters]))
    texts = [everything[n : n + 1000] for n in range(0, len(everything), 1000)]
    vocabulary = train_sentencepiece(texts, tmp_path / "all.model", 100_000, "char")
    for character in characters:
        decomposed = unicodedata.normalize("NFD", f"b {character} b")
        assert vocabulary.decode(vocabulary.encode(decomposed)) == spelled(decomposed)
    # Marks that were typed in another order than the canonical one.
    assert vocabulary.decode(vocabulary.encode("e\u0302\u0323")) == "\u1ec7"


def test_seqio_reads_the_same_tokens(letters, tmp_path) -> None:
    import seqio

    vocabulary = seqio.SentencePieceVocabulary(str(letters.save(tmp_path)))
    for text in TEXTS.values():
        decomposed = unicodedata.normalize("NFD", text)
        ids = vocabulary.encode_tf(decomposed)
        assert ids.numpy().tolist() == letters.encode(text)
        assert vocabulary.decode_tf(ids).numpy().decode() == spelled(text)


def test_a_model_file_names_no_directory(letters) -> None:
    assert b".tsv" not in letters.model_bytes and b"/" not in letters.model_bytes[-200:]


def test_reserved_characters_do_not_take_their_sentence_along(tmp_path) -> None:
    vocabulary = train_sentencepiece(["ab \u2585 cd", "ab"], tmp_path / "v.model", 40, "char")
    assert vocabulary.decode(vocabulary.encode("ab cd")) == "ab cd"


def test_letters_without_a_piece_may_become_bytes(tmp_path) -> None:
    texts = ["ab ba"] * 50 + ["日"]
    bytes_ = train_sentencepiece(
        texts, tmp_path / "b.model", 400, "char", coverage=0.99, byte_fallback=True
    )
    plain = train_sentencepiece(texts, tmp_path / "p.model", 400, "char", coverage=0.99)
    assert bytes_.decode(bytes_.encode("ab 日本 𝒳")) == "ab 日本 𝒳"
    assert bytes_.vocab_size == plain.vocab_size + 256
    assert measured(plain, texts, "en")["lost"] == ("日",)


def test_what_an_older_vocabulary_rewrites_is_measured() -> None:
    """SentencePiece's own normalisation: a joiner becomes a space, one word of three two."""
    model = io.BytesIO()
    text = "نمی\u200cدانم کجا بود"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text, "خانه"]),
        model_writer=model,
        model_type="char",
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    vocabulary = SentencePieceVocabulary(model.getvalue())
    row = measured(vocabulary, [text, text, "خانه"], "fa")
    # A substitution and an insertion over four words.
    assert row["round_trip_error"] == pytest.approx(100 * 2 / 4)
    assert (row["changed"], row["unknown_percent"]) == (1, 0.0)
    assert row["lost"] == ("\u200c",) and row["round_trip_bleu_loss"] > 0
    assert row["examples"] == ((text, text.replace("\u200c", " ")),)
