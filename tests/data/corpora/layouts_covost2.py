"""A small CoVoST-2, to be joined with a small Common Voice 4."""

from __future__ import annotations

from pathlib import Path

from layouts_common_voice import OLD, clip_row, speak_clip, write_table

TRANSLATIONS = ["path", "translation", "split"]
JOINED = ["path", "sentence", "translation", "client_id"]

# Number, sentence, translation and split of what is there and whole.
GERMAN = (
    (1, 'Das ist "gut", ja!', 'That is "good", yes!', "train"),
    (2, "Eins zwei.", "One\\two.", "train_covost"),
    (3, "Drei vier.", "Three, four.", "dev"),
    (4, "Fünf sechs.", '"Five six.', "test"),
)
ENGLISH = (
    (1, "One two.", "Eins zwei.", "一二。", "train"),
    (2, "Three four.", "Drei vier.", "三四。", "dev"),
    (3, "Five six.", "Fünf sechs.", "五六。", "test"),
)
SWEDISH = (
    (1, "Ett två.", "One two.", "train"),
    (2, "Tre fyra.", "Three four.", "dev"),
    (3, "Fem.", "Five.", "test"),
)


def clip(language: str, number: int) -> str:
    """The name of a clip."""
    return f"common_voice_{language}_{number}.mp3"


def lay_out(source: Path) -> Path:
    """Lays the corpus out.

    German into English has a table with everything wrong that can be; English into German and
    Chinese have tables that lie elsewhere; Swedish is joined already.

    Returns:
        Its directory.
    """
    german, english, swedish = (source / name for name in ("de", "en", "sv-SE"))
    for number, sentence, *_ in (*GERMAN, (5, "Sieben."), (6, "Acht.")):
        speak_clip(german, clip("de", number), sentence, "de")
    rows = [
        *((clip("de", number), *rest) for number, *rest in GERMAN),
        # The transcript has no words, but the translation trains.
        (clip("de", 5), "… !", "Seven.", "train"),
        # In a test set, a clip without a translation stays.
        (clip("de", 6), "Acht.", "REMOVE", "test"),
        (clip("de", 7), "unübersetzt", "REMOVE", "train"),
        (clip("de", 8), "leer", "", "train"),
        (clip("de", 9), "verschwunden", "Gone.", "train"),
    ]
    table = [{"path": p, "translation": t, "split": s} for p, _, t, s in rows]
    table += [
        {"path": clip("de", 1), "translation": "Again.", "split": "train"},
        {"path": clip("de", 97), "translation": "Of another release.", "split": "test"},
        {"path": clip("de", 98), "translation": "What for?", "split": "else"},
    ]
    write_table(source / "covost_v2.de_en.tsv", TRANSLATIONS, table)
    # In another order than the translations, with a clip that nobody translated.
    validated = [clip_row(p, s, f"speaker{p[-5]}") for p, s, *_ in reversed(rows)]
    validated += [clip_row(clip("de", 99), "nicht gefragt")]
    write_table(german / "validated.tsv", OLD, validated)

    for number, sentence, *_ in ENGLISH:
        speak_clip(english, clip("en", number), sentence, "en")
    write_table(
        english / "validated.tsv", OLD, [clip_row(clip("en", n), s) for n, s, *_ in ENGLISH]
    )
    for place, column, locale in (
        (source / "CoVoST2", 2, "de"),
        (english, 3, "zh-CN"),
    ):
        write_table(
            place / f"covost_v2.en_{locale}.tsv",
            TRANSLATIONS,
            [
                {"path": clip("en", row[0]), "translation": row[column], "split": row[4]}
                for row in ENGLISH
            ],
        )

    for number, sentence, translation, split in SWEDISH:
        speak_clip(swedish, clip("sv-SE", number), sentence, "sv")
        write_table(
            swedish / f"covost_v2.sv-SE_en.{split}.tsv",
            JOINED,
            [{**clip_row(clip("sv-SE", number), sentence), "translation": translation}],
        )
    return source
