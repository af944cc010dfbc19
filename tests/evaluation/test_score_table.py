"""The table has the rows, numbers and notes that a reader needs, in all three forms."""

import json

import pytest

from maestro_jax.evaluation.evaluate import score
from maestro_jax.evaluation.predictions import Prediction
from maestro_jax.evaluation.score_table import ScoreTable
from maestro_jax.scoring.published import (
    COVOST_BLEU,
    COVOST_GROUPS,
    VOXPOPULI_LANGUAGES,
    VOXPOPULI_WER,
    PublishedScores,
    published_scores,
)


def recognised(language, *pairs):
    return [
        Prediction(id=f"{language}-{i}", language=language, reference=r, hypothesis=h)
        for i, (r, h) in enumerate(pairs)
    ]


@pytest.fixture
def recognition():
    predictions = [
        *recognised("de", ("eins zwei", "eins zwei"), ("drei vier", "drei vier")),
        *recognised("en", ("one two", "one too"), ("", "noise")),
        *recognised("sl", ("ena dve", "")),
    ]
    return score(predictions, kind="asr", name="toy", expected={"de": 2, "en": 3, "sl": 1})


@pytest.fixture
def translation():
    predictions = [
        Prediction(id="1", language=language, target_language=target, reference=r, hypothesis=r)
        for language, target, r in (
            ("de", "en", "a house by the sea"),
            ("en", "ja", "海の近くの家です"),
        )
    ]
    return score(predictions, kind="st", name="toy")


def table(markdown):
    """The cells of a Markdown table, a list a line, without the rule."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(cells[1])) <= set("-: ")
    assert len({len(row) for row in cells}) == 1
    return [cells[0], *cells[2:]]


def test_markdown_table(recognition):
    header, *rows = table(ScoreTable(recognition, low_resource={"sl"}).markdown())
    assert header[:3] == ["language", "utterances", "WER %"]
    named = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(named) == [
        "de",
        "en",
        "sl (low-resource)",
        "average of 3",
        "average of 2, without low-resource",
    ]
    assert named["de"]["WER %"] == "0.0"
    # One substitution and one insertion over two words.
    assert (named["en"]["sub"], named["en"]["ins"], named["en"]["WER %"]) == ("1", "1", "100.0")
    assert named["sl (low-resource)"]["del"] == "2"
    assert named["en"]["utterances"] == "2 of 3"
    assert named["average of 3"]["WER %"] == f"{(0 + 100 + 100) / 3:.1f}"
    assert named["average of 2, without low-resource"]["WER %"] == "50.0"


def test_notes_tell_what_the_numbers_rest_on(recognition):
    page = ScoreTable(recognition, low_resource={"sl"}).markdown()
    assert "INCOMPLETE" in page and "en 2 of 3" in page
    assert "empty reference: en 1" in page
    assert "empty hypothesis: sl 1" in page
    assert "5 utterances scored" in page


def test_text_table_is_aligned(recognition):
    lines = ScoreTable(recognition).text().splitlines()
    header = next(line for line in lines if line.startswith("language"))
    column = header.index("WER %") + len("WER %")
    rows = [line for line in lines if line.startswith(("de ", "en ", "sl ", "average"))]
    assert len(rows) == 4
    for line in rows:
        float(line[:column].split()[-1])


def test_translation_table_shows_signatures(translation):
    page = ScoreTable(translation).markdown()
    header, *rows = table(page)
    assert header[0] == "direction"
    assert [row[0] for row in rows] == ["de-en", "en-ja", "average of 2"]
    assert "BLEU (de-en): `nrefs:1|case:mixed|eff:no|tok:13a" in page
    assert "BLEU (en-ja): `nrefs:1|case:mixed|eff:no|tok:char" in page
    assert page.count("chrF: `") == 1


def test_files(recognition, tmp_path):
    scores = ScoreTable(recognition, low_resource={"sl"})
    markdown, values = scores.write(tmp_path / "evaluation")
    assert (markdown.name, values.name) == ("toy.md", "toy.json")
    assert markdown.read_text() == ScoreTable(recognition, low_resource={"sl"}).markdown()
    content = json.loads(values.read_text())
    assert content == json.loads(json.dumps(ScoreTable(recognition, low_resource={"sl"}).as_dict()))
    assert [row["direction"] for row in content["rows"]] == ["de", "en", "sl"]
    assert [row["low_resource"] for row in content["rows"]] == [False, False, True]
    assert content["rows"][1]["wer"] == 100.0
    assert content["rows"][1]["complete"] is content["complete"] is False
    assert [average["rows"] for average in content["averages"]] == [
        ["de", "en", "sl"],
        ["de", "en"],
    ]


def test_undefined_scores_are_null_in_json_and_marked_in_the_table(tmp_path):
    evaluation = score(recognised("de", ("", "x")), kind="asr", name="toy", expected={"fr": 3})
    _, values = ScoreTable(evaluation).write(tmp_path)
    assert [row["wer"] for row in json.loads(values.read_text())["rows"]] == [None, None]
    _, *rows = table(ScoreTable(evaluation).markdown())
    assert [row[2] for row in rows] == ["inf", "-", "-"]


def test_published_columns_average_over_the_same_languages(recognition):
    header, *rows = table(ScoreTable(recognition, published=VOXPOPULI_WER).markdown())
    column = header.index("MAESTRO")
    assert [row[column] for row in rows[:3]] == ["7.9", "6.3", "14.2"]
    assert rows[3][column] == f"{(7.9 + 6.3 + 14.2) / 3:.1f}"


def test_a_stated_average_needs_the_whole_group():
    predictions = [
        Prediction(
            id="1",
            language=language,
            target_language="en",
            reference="a b c d",
            hypothesis="a b c d",
        )
        for language in (*COVOST_GROUPS["high"], *COVOST_GROUPS["mid"][:2])
    ]
    evaluation = score(predictions, kind="st", name="covost")
    page = ScoreTable(evaluation, groups=COVOST_GROUPS, published=COVOST_BLEU).markdown()
    header, *rows = table(page)
    column = header.index("MAESTRO")
    averages = {row[0]: row[column] for row in rows if row[0].startswith("average")}
    assert averages == {"average of 6": "-", "average of 4, high": "38.2", "average of 2, mid": "-"}


def test_the_average_of_the_paper_is_the_one_that_it_prints():
    """Its table 3: 8.8 and 8.2, although the mean of the rounded rates of w2v-BERT is 8.86."""
    predictions = [
        prediction
        for language in VOXPOPULI_LANGUAGES
        for prediction in recognised(language, ("a b", "a b"))
    ]
    for languages, expected in ((14, ["8.8", "8.2"]), (2, ["7.6", "7.1"])):
        evaluation = score(predictions[:languages], kind="asr", name="parliament")
        header, *rows = table(ScoreTable(evaluation, published=VOXPOPULI_WER).markdown())
        columns = [header.index(name) for name in ("w2v-BERT", "MAESTRO")]
        assert [rows[-1][column] for column in columns] == expected


def test_languages_without_spaces_lead_with_the_character_error_rate():
    """One wrong character of ten, in one of two sentences; one wrong word of four."""
    predictions = [
        *recognised("ja", ("今日は暑い", "今日は暑い"), ("明日も暑い", "明日も寒い")),
        *recognised("de", ("eins zwei drei vier", "eins zwei drei vor")),
        # Spaces between characters, as FLEURS has them, are no characters of Chinese.
        *recognised("cmn_hans_cn", ("这 是 一 本 书", "这是一本书")),
    ]
    evaluation = score(predictions, kind="asr", name="toy", bootstrap_samples=100)
    content = ScoreTable(evaluation).as_dict()
    rows = {row["direction"]: row for row in content["rows"]}
    assert {name: row["primary_metric"] for name, row in rows.items()} == {
        "ja": "cer",
        "cmn_hans_cn": "cer",
        "de": "wer",
    }
    assert rows["ja"]["cer"] == pytest.approx(10) and rows["ja"]["wer"] == pytest.approx(50)
    assert rows["cmn_hans_cn"]["cer"] == 0
    [average] = content["averages"]
    assert average["error_rate"] == pytest.approx((10 + 25 + 0) / 3)
    assert average["wer"] is None
    header, *cells = table(ScoreTable(evaluation).markdown())
    named = {row[0]: dict(zip(header, row, strict=True)) for row in cells}
    assert header[2] == "error %"
    assert (named["ja"]["error %"], named["ja"]["metric"]) == ("10.0", "CER")
    assert (named["ja"]["characters"], named["ja"]["sub"]) == ("10", "1")
    assert (named["de"]["error %"], named["de"]["metric"]) == ("25.0", "WER")
    assert named["average of 3"]["error %"] == "11.7"
    assert named["average of 3"]["WER %"] == "-"
    low, high = map(float, named["ja"]["95% interval"].split(" to "))
    assert low == 0.0 and high == 20.0
    alone = score(predictions[:2], kind="asr", name="toy")
    header, *cells = table(ScoreTable(alone).markdown())
    assert header[2:6] == ["CER %", "95% interval", "WER %", "characters"]
    assert [row[2] for row in cells] == ["10.0", "10.0"]
    assert "Scored by character" in ScoreTable(alone).text()


def test_published_numbers_agree_with_their_averages():
    for numbers in VOXPOPULI_WER.values():
        rates = [rate for language, rate in numbers.items() if language != "all"]
        # The paper rounds each language, and the average, before it prints them.
        assert sum(rates) / len(rates) == pytest.approx(numbers["all"], abs=0.1)
    assert sum(map(len, COVOST_GROUPS.values())) == 21
    for numbers in COVOST_BLEU.values():
        total = sum(len(languages) * numbers[name] for name, languages in COVOST_GROUPS.items())
        assert total / 21 == pytest.approx(numbers["all"], abs=0.1)


def test_what_was_published_about_a_test_set():
    speech, text = ([f"covost2_{s}_{code}_en" for code in ("de", "sl")] for s in ("st", "mt"))
    whole = published_scores(speech, "test")
    assert (whole.groups, whole.published) == (COVOST_GROUPS, COVOST_BLEU)
    assert published_scores(speech, "validation") == PublishedScores(COVOST_GROUPS)
    assert published_scores(text, "test") == PublishedScores(COVOST_GROUPS)
    parliament = [f"voxpopuli_paired_{code}" for code in ("de", "sl")]
    assert published_scores(parliament, "test").published == VOXPOPULI_WER
    assert published_scores(parliament[:1], "test").published == VOXPOPULI_WER
    for tasks in (
        [],
        speech[:1],
        ["covost2_st_en_de", "covost2_st_en_sl"],
        [*speech, "covost2_st_en_de"],
        [*parliament, "mls_paired_de"],
        ["voxpopuli_paired_en_accented"],
        ["minivox_small_st_de"],
    ):
        assert published_scores(tasks, "test") == PublishedScores()
