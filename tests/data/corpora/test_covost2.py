"""CoVoST-2 joined with Common Voice, through `prepare`, to batches and scores."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from answering import Answering
from layouts_common_voice import write_table
from layouts_covost2 import ENGLISH, GERMAN, SWEDISH, TRANSLATIONS, clip, lay_out
from spoken import issues_of, likeness, prepared, records

from maestro_jax.data.corpora.corpus import published_sizes as sizes_of_corpus
from maestro_jax.data.corpora.covost2 import FROM_ENGLISH, INTO_ENGLISH, Covost2
from maestro_jax.data.corpora.issues import IssueLog
from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("covost"))


def test_directions(source: Path) -> None:
    corpus = Covost2()
    assert corpus.configs(source) == ["de_en", "en_de", "en_zh", "sv_en"]
    assert corpus.configs(source, ["en"]) == ["en_de", "en_zh"]
    assert corpus.configs(source, ["en_zh-CN", "de-en", "sv-SE"]) == ["en_zh", "de_en", "sv_en"]
    for missing in ("fr", "fr_en", "de_fr", "de-fr"):
        with pytest.raises(UserError, match=f"{missing!r} is not among the directions"):
            corpus.configs(source, [missing])


def test_all_is_written_or_accounted_for(source: Path, tmp_path: Path) -> None:
    result = prepared(Covost2(), source, "de_en", tmp_path)
    train, validation, test = result.splits
    assert train.issues == {
        "set aside": 2,
        "incomplete": 1,
        "duplicate id": 1,
        "missing audio": 1,
    }
    assert (train.listed, train.utterances) == (4, 3)
    assert (validation.utterances, validation.issues) == (1, {})
    assert (test.utterances, test.issues) == (2, {"incomplete": 1, "no counterpart": 1})
    assert result.lines == {"unknown split": 1}
    assert (test.published, train.published) == (13511, 127834)
    assert test.explanation() == (
        "13509 fewer in the tables than published, 1 incomplete (kept), 1 no counterpart"
    )
    assert ("no counterpart", "test", "covost_v2.de_en.tsv:12") in issues_of(result)
    assert ("set aside", "train", "covost_v2.de_en.tsv:8") in issues_of(result)

    found = {
        entry["id"]: entry
        for split in ("train", "validation", "test")
        for entry in records(result, split)
    }
    assert set(found) == {f"common_voice_de_{number}" for number in range(1, 7)}
    for number, sentence, translation, _ in GERMAN:
        entry = found[f"common_voice_de_{number}"]
        assert (entry["raw_text"], entry["translation"]) == (sentence, translation)
        assert (entry["language"], entry["speaker"]) == ("de", f"speaker{number}")
        assert likeness(entry["audio"], sentence, "de") > 0.98
    assert found["common_voice_de_1"]["text"] == "das ist gut ja"
    assert found["common_voice_de_5"]["text"] == ""


def test_what_translators_gave_up_is_nothing_to_mend(source: Path, tmp_path: Path) -> None:
    # Strict about the table's second row of a clip, behind the sentences without a translation.
    with pytest.raises(UserError, match=r"covost_v2\.de_en\.tsv:11: duplicate id"):
        prepared(Covost2(), source, "de_en", tmp_path, strict=True)
    issues = IssueLog(strict=True)
    for kind in ("set aside", "incomplete"):
        issues.add(kind, split="train", item="covost_v2.de_en.tsv:8", detail="REMOVE")
    assert issues.counts("train") == {"set aside": 1, "incomplete": 1}


def test_the_join_is_that_of_the_published_script(source: Path) -> None:
    """Against its definition: an inner join on `path` in the order of validated.tsv."""

    def peer(path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(
                csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
            )

    splits = {"train": "train", "train_covost": "train", "dev": "validation", "test": "test"}
    expected = [
        (left["path"], left["sentence"], right["translation"], left["client_id"], split)
        for left in peer(source / "de" / "validated.tsv")
        for right in peer(source / "covost_v2.de_en.tsv")
        if left["path"] == right["path"] and (split := splits[right["split"]])
        # What is left out on purpose, and accounted for.
        if right["translation"] != "Again."
        and not (split == "train" and right["translation"] in ("", "REMOVE"))
    ]
    found = [
        (f"{u.id}.mp3", u.raw_text, u.translation, u.speaker, u.split)
        for u in Covost2().utterances(source, "de_en", IssueLog())
    ]
    assert found == expected and len(found) == 7


def test_joined_tables_are_read_as_they_are(source: Path, tmp_path: Path) -> None:
    result = prepared(Covost2(), source, "sv_en", tmp_path)
    assert not issues_of(result)
    for split, (number, sentence, translation, _) in zip(
        ("train", "validation", "test"), SWEDISH, strict=True
    ):
        [entry] = records(result, split)
        assert entry["id"] == f"common_voice_sv-SE_{number}"
        assert (entry["raw_text"], entry["translation"]) == (sentence, translation)
        assert entry["language"] == "sv"
        assert likeness(entry["audio"], sentence, "sv") > 0.98


@pytest.fixture(scope="module")
def root(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All directions as the command prepares them, and a vocabulary."""
    from maestro_jax.cli.main import main
    from maestro_jax.text.vocabularies import train_sentencepiece

    root = tmp_path_factory.mktemp("data")
    command = ["prepare", "covost2", "--source_dir", str(source), "--data_dir", str(root)]
    assert main([*command, "--workers", "1"]) == 0
    texts = [text for row in (*GERMAN, *ENGLISH, *SWEDISH) for text in row[1:-1]]
    texts += [text.lower() for text in texts]
    train_sentencepiece(texts, root / "vocabularies" / "multilingual.model", 120, "char")
    return root


def test_batches_of_every_stream(root: Path) -> None:
    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.loader import StreamLoader

    sizes = {"audio_samples": 60_000, "text_tokens": 40, "translation_tokens": 40}

    def config(mixture: str, batch_size: int, *names: str) -> StreamConfig:
        lengths = {name: sizes[name] for name in names}
        return StreamConfig(mixture=mixture, batch_size=batch_size, **lengths)

    streams = {
        "st": config("covost2_st_en_zh", 1, "audio_samples", "translation_tokens"),
        "mt": config("covost2_mt_en_de", 1, "text_tokens", "translation_tokens"),
        "paired": config("covost2_paired_de_en", 3, "audio_samples", "text_tokens"),
    }
    with StreamLoader(streams, seed=1, data_dir=root) as loader:
        batch, vocabulary = next(loader), loader.vocabulary

    def words(stream: str, name: str, row: int = 0) -> str:
        length = batch[stream][f"{name}_length"][row]
        return vocabulary.decode(batch[stream][name][row, :length].tolist())

    _, sentence, german, chinese, _ = ENGLISH[0]
    assert words("st", "translation") == chinese
    assert batch["st"]["language"].tolist() == [LANGUAGES.index("en")]
    assert batch["st"]["target_language"].tolist() == [LANGUAGES.index("zh")]
    audio = batch["st"]["audio"][0, : batch["st"]["audio_length"][0]]
    assert likeness(audio, sentence, "en") > 0.98
    assert (words("mt", "text"), words("mt", "translation")) == ("one two", german)
    assert batch["mt"]["target_language"].tolist() == [LANGUAGES.index("de")]
    # The one without a transcript is absent.
    assert {words("paired", "text", row) for row in range(3)} == {"das ist gut ja", "eins zwei", ""}


def test_scores_ask_for_the_language_of_each_task(root: Path, tmp_path: Path) -> None:
    from maestro_jax.data.task_registry import add_language_mixture
    from maestro_jax.evaluation.run_evaluation import evaluate_test_sets, select_test_sets

    _, _, german, chinese, _ = ENGLISH[2]
    answers = {"de": german, "zh": chinese}

    knowing = Answering(lambda _, target: answers[LANGUAGES[target]])
    names = []
    for stream in ("st", "mt"):
        tasks = [f"covost2_{stream}_{config}" for config in ("en_zh", "en_de")]
        names.append(f"two_covost2_{stream}")
        add_language_mixture(names[-1], tasks)
    sets = select_test_sets(names, "test")
    report = evaluate_test_sets(sets, knowing, directory=tmp_path, data_dir=root)
    for evaluation in report.evaluations:
        rows = {row.direction: row.scores for row in evaluation.rows}
        assert set(rows) == {"en-de", "en-zh"}
        assert all(scores["chrf"].value == pytest.approx(100) for scores in rows.values())
        # Three characters, where 13a sees words.
        chinese, german = (rows[direction]["bleu"] for direction in ("en-zh", "en-de"))
        assert chinese.counts["reference_tokens"] == 3 and "tok:char" in chinese.signature
        assert "tok:13a" in german.signature
    assert not evaluation.complete
    assert "en-zh 1 of 15531" in report.text()


def test_sizes_by_row(root: Path) -> None:
    from maestro_jax.data.corpora.corpus import SplitSize
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.data.test_sets import test_set_sizes as sizes_of

    names = ["covost2_st_en_zh", "covost2_mt_de_en", "covost2_paired_sv_en", "covost2_st_fr_en"]
    tasks = [get_task_or_mixture(name) for name in names]
    with data_scope(root):
        sizes = sizes_of(tasks, "test")
        assert sizes == {
            "en-zh": SplitSize(published=15531, listed=1),
            # "incomplete" clips are kept; the one of another release is in the table alone.
            "de-en": SplitSize(published=13511, listed=2, left_out={"no counterpart": 1}),
            "sv": SplitSize(published=1595, listed=1),
        }
        # A row of two tasks has what both have.
        both = sizes_of(tasks[:2], "test", {task.name: "both" for task in tasks[:2]})
        assert both == {
            "both": SplitSize(published=29042, listed=3, left_out={"no counterpart": 1})
        }
        # MiniVox does not say how much German there is.
        both = [
            get_task_or_mixture(name) for name in ("covost2_paired_de_en", "minivox_tiny_text_de")
        ]
        assert sizes_of(both, "test") == {}


def test_every_direction_has_its_tasks() -> None:
    import seqio

    from maestro_jax.data.stream_tasks import stream_of
    from maestro_jax.data.task_registry import get_task_or_mixture, tasks_of

    assert (len(set(INTO_ENGLISH)), len(set(FROM_ENGLISH))) == (21, 15)
    assert all(sizes_of_corpus("covost2", f"{language}_en") for language in INTO_ENGLISH)
    for name, stream, count in (
        ("covost2_st_x_en", "st", 21),
        ("covost2_st_en_x", "st", 15),
        ("covost2_mt_x_en", "mt", 21),
        ("covost2_mt_en_x_upsampled", "mt", 15),
        ("covost2_paired_upsampled", "paired", 22),
    ):
        mixture = get_task_or_mixture(name)
        assert stream_of(mixture) == stream
        assert len({task.name for task in tasks_of(mixture)}) == count
    languages = [task.languages for task in tasks_of(get_task_or_mixture("covost2_paired"))]
    assert len(set(languages)) == 22
    assert "covost2_st_en_ja" in seqio.TaskRegistry.names()
    corpus = Covost2()
    assert corpus.published(Path(), "en_ja")["test"].utterances == 15531
    assert corpus.published(Path(), "en_fr") == {}


def test_what_cannot_be_joined_is_one_line(tmp_path: Path) -> None:
    corpus = Covost2()
    with pytest.raises(UserError, match="there are no directions"):
        corpus.configs(tmp_path)
    row = {"path": clip("de", 1), "translation": "one", "split": "train"}
    write_table(tmp_path / "covost_v2.de_en.tsv", TRANSLATIONS, [row])
    with pytest.raises(UserError, match="no Common Voice 4 of 'de' in .*validated.tsv and clips"):
        prepared(corpus, tmp_path, "de_en", tmp_path / "data")
    (tmp_path / "de" / "clips").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no .*validated\.tsv to join"):
        prepared(corpus, tmp_path, "de_en", tmp_path / "data")
    other = {"path": clip("de", 2), "sentence": "zwei"}
    write_table(tmp_path / "de" / "validated.tsv", ["path", "sentence"], [other])
    with pytest.raises(UserError, match="CoVoST-2 needs the validated"):
        prepared(corpus, tmp_path, "de_en", tmp_path / "data")
