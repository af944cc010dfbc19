"""Vocabularies from the texts of prepared tasks."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.text.vocabularies import ByteVocabulary, load_vocabulary

TASKS = ("tinyvox_text", "tinyvox_mt")


def texts_of(corpus, *splits: str, fields=("text", "translation")) -> list[str]:
    return [record[f] for split in splits for record in corpus.records[split] for f in fields]


@given(
    sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=6),
    total=st.integers(0, 10**7),
    temperature=st.sampled_from([1.0, 3.0, float("inf")]),
)
def test_shares_follow_the_temperature(sizes, total, temperature) -> None:
    from maestro_jax.data.vocabulary_sampling import MAX_REPEATS, shares

    taken = shares(sizes, total, temperature)
    assert sum(taken) == min(total, MAX_REPEATS * sum(sizes))
    # Those that give less than all they can are in proportion to size ** (1 / temperature).
    unit = None
    for size, take in zip(sizes, taken, strict=True):
        assert 0 <= take <= MAX_REPEATS * size
        if take < MAX_REPEATS * size - 1:
            weight = size ** (1 / temperature)
            low, high = (take - 1) / weight, (take + 1) / weight
            if unit is not None:
                assert low <= unit[1] and unit[0] <= high
            unit = (low, high)


def test_shares_by_hand() -> None:
    from maestro_jax.data.vocabulary_sampling import shares

    assert shares([1000, 8, 1], 110, 1.0) == [109, 1, 0]
    # Cube roots 10, 2 and 1; the last may give ten, the second eighty.
    assert shares([1000, 8, 1], 130, 3.0) == [100, 20, 10]
    assert shares([1000, 8, 1], 780, 3.0) == [690, 80, 10]
    assert shares([5, 5], 100, 3.0) == [50, 50]


def test_all_texts_are_read(corpus) -> None:
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.vocabulary_sampling import plan, read, text_sources

    with data_scope(corpus.root):
        samples = plan(text_sources(TASKS), 10**6, 1.0)
        found = collections.defaultdict(list)
        everything = list(read(samples, lambda language, text: found[language].append(text)))
    german = texts_of(corpus, "text_de_train", "mt_de_train", fields=["text"])
    english = texts_of(corpus, "mt_de_train", "mt_sl_train", fields=["translation"])
    assert {sample.language: sample.sentences for sample in samples} == {
        "de": len(german),
        "sl": 10,
        "en": len(english),
    }
    assert found["de"] == german and found["en"] == english
    assert everything == [text for texts in found.values() for text in texts]


def test_a_sample_is_spread_over_the_whole_of_a_task(corpus) -> None:
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.vocabulary_sampling import text_sources

    with data_scope(corpus.root):
        [source] = text_sources(["tinyvox_text_de"])
        there = texts_of(corpus, "text_de_train", fields=["text"])
        assert len(there) == 17
        assert list(source.read(4)) == [there[n] for n in (0, 4, 8, 12)]
        assert list(source.read(34)) == [text for text in there for _ in range(2)]
        assert list(source.read(0)) == []


def test_tasks_that_read_the_same_texts_count_once(corpus) -> None:
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.vocabulary_sampling import text_sources

    with data_scope(corpus.root):
        names = ["tinyvox_paired", "tinyvox_paired_even", "tinyvox_paired_de", "tinyvox_st"]
        sources = text_sources(names)
        assert [(s.task.name, s.field, s.language) for s in sources] == [
            ("tinyvox_paired_de", "text", "de"),
            ("tinyvox_paired_sl", "text", "sl"),
            ("tinyvox_st_de", "translation", "en"),
            ("tinyvox_st_sl", "translation", "en"),
        ]
        with pytest.raises(UserError, match=r"'tinyvox_speech' has no text .*'speech'"):
            text_sources(["tinyvox_speech"])


def test_sources_without_random_access_are_read_too(corpus) -> None:
    import seqio
    import tensorflow as tf

    from maestro_jax.data.stream_tasks import PreparedVocabulary, add_stream_task
    from maestro_jax.data.vocabulary_sampling import text_sources

    @seqio.map_over_dataset
    def shout(example):
        return {**example, "text": tf.strings.upper(example["text"])}

    texts = [f"text {number}" for number in range(10)]
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files=False, seed=None: tf.data.Dataset.from_tensor_slices(
            {"text": texts}
        ),
        splits=["train"],
        num_input_examples={"train": 10},
    )
    add_stream_task(
        "shouted",
        stream="text",
        source=source,
        languages=("en",),
        vocabulary=PreparedVocabulary("vocabularies/nowhere.model", "make it"),
        preprocessors=[shout, seqio.preprocessors.tokenize],
    )
    [found] = text_sources(["shouted"])
    # The texts as they are before there is a vocabulary for them, every third or fourth.
    assert list(found.read(3)) == ["TEXT 0", "TEXT 3", "TEXT 6"]


def test_training_is_deterministic_and_writes_what_it_did(corpus) -> None:
    from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary

    request = VocabularyRequest(tasks=TASKS, size=60, kind="bpe", temperature=2.0)
    first = train_vocabulary("first", request, data_dir=corpus.root)
    second = train_vocabulary("second", request, data_dir=corpus.root)
    assert first.path == corpus.root / "vocabularies" / "first.model"
    assert first.path.read_bytes() == second.path.read_bytes()
    vocabulary = load_vocabulary(first.path)
    assert first.size == vocabulary.vocab_size == 60
    for text in texts_of(corpus, "text_sl_train", "mt_de_train"):
        if text:
            assert vocabulary.decode(vocabulary.encode(text)) == text
    rows = {row.language: row for row in first.languages}
    assert {code: row.sentences for code, row in rows.items()} == {"de": 26, "sl": 10, "en": 13}
    assert sum(row.sampled for row in rows.values()) == 49
    # Drawn more often than its size says, and measured against the vocabulary.
    assert rows["sl"].sampled == 13
    english = texts_of(corpus, "mt_de_train", "mt_sl_train", fields=["translation"])
    tokens = sum(len(vocabulary.encode(text)) for text in english)
    words = sum(len(text.split()) for text in english)
    assert rows["en"].tokens_per_word == pytest.approx(tokens / words, rel=0.1)
    assert {row.unknown_percent for row in rows.values()} == {0.0}
    assert {row.round_trip_error for row in rows.values()} == {0.0}
    assert {row.changed for row in rows.values()} == {0}

    again = train_vocabulary("first", request, data_dir=corpus.root)
    assert not again.fresh and again.languages == first.languages
    other = VocabularyRequest(tasks=TASKS, size=50, kind="char", temperature=2.0)
    with pytest.raises(
        UserError, match=r"trained with other options \(kind 'bpe', size 60\).*--overwrite"
    ):
        train_vocabulary("first", other, data_dir=corpus.root)
    letters = train_vocabulary("first", other, data_dir=corpus.root, overwrite=True)
    everything = "".join(text for split in corpus.records for text in texts_of(corpus, split))
    # One piece a letter, the mark of a blank, and the three special ones.
    assert letters.size == len(set(everything) - {" "}) + 4


def test_letters_that_found_no_place_are_reported(corpus, capsys, caplog) -> None:
    command = ["vocabulary", "few", "--size", "12", "--kind", "char", "--json"]
    command += ["--task", TASKS[0], "--data_dir", str(corpus.root)]
    for _ in range(2):  # It says so of what is there already, too.
        caplog.clear()
        assert main(command) == 0
        out, err = capsys.readouterr()
        rows = json.loads(out)["languages"]
        # To standard error by the command's own handler, unless an earlier test has set it up.
        lines = [*err.splitlines(), *caplog.messages]
        assert all(row["unknown_percent"] > 5 and row["round_trip_error"] > 0 for row in rows)
        for row in rows:
            said = f"warning: {row['language']}: "
            line = next(line for line in lines if said in line)
            assert f"{row['changed']} texts" in line and "LATIN SMALL LETTER" in line
            assert " becomes " in line


def test_an_older_record_is_still_read(corpus, caplog) -> None:
    from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary

    request = VocabularyRequest(tasks=TASKS, size=60)
    made = train_vocabulary("older", request, data_dir=corpus.root)
    record = made.path.with_suffix(".json")
    content = json.loads(record.read_text())
    del content["request"]["byte_fallback"]
    for row in content["languages"]:
        for name in ("changed", "round_trip_error", "round_trip_bleu_loss", "lost", "examples"):
            del row[name]
        row["tokens_a_word"] = row.pop("tokens_per_word")
    record.write_text(json.dumps(content))
    again = train_vocabulary("older", request, data_dir=corpus.root)
    assert not again.fresh and {row.changed for row in again.languages} == {None}
    tokens = [row.tokens_per_word for row in made.languages]
    assert [row.tokens_per_word for row in again.languages] == tokens
    assert "made by an earlier version" in caplog.text
    bytes_ = VocabularyRequest(tasks=TASKS, size=400, byte_fallback=True)
    with pytest.raises(UserError, match="trained with other options"):
        train_vocabulary("older", bytes_, data_dir=corpus.root)


def test_from_the_command_line(corpus, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["vocabulary", "mine", "--task", "tinyvox_mt", "--data_dir", str(corpus.root)]
    command += ["--size", "40", "--sentences", "20"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("mine.model has 40 pieces: --gin.VOCAB_SIZE=40")
    assert out.split("\n\n")[0].splitlines()[2].split()[0] == "de"
    assert "reading the texts: 100% 20/20" in err
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["size"], record["fresh"]) == (40, False)
    assert sum(row["sampled"] for row in record["languages"]) == 20

    assert main(["vocabulary", "bytes", "--kind", "byte", "--data_dir", str(corpus.root)]) == 0
    assert load_vocabulary(corpus.root / "vocabularies" / "bytes.model") == ByteVocabulary()


def test_the_shared_vocabulary_is_of_all_that_read_it(
    corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy of a task without a vocabulary is a command that works as it stands."""
    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.tasks.corpus_tasks import VOCABULARY, add_corpus_task

    for stream, split in (("mt", "mt_sl_train"), ("text", "mt_sl_train"), ("paired", "none")):
        add_corpus_task(
            "tinyvox" if split != "none" else "unmade",
            "small",
            stream=stream,
            language="sl",
            splits={"train": split},
            name=f"shared_{stream}_sl",
        )
    streams = {
        "mt": StreamConfig(
            mixture="shared_mt_sl", batch_size=4, text_tokens=60, translation_tokens=60
        )
    }
    with pytest.raises(UserError, match="run `maestro vocabulary multilingual --kind char`"):
        StreamLoader(streams, seed=0, data_dir=corpus.root)
    command = ["vocabulary", "multilingual", "--json", "--data_dir", str(corpus.root)]
    assert main(command) == 0
    record = json.loads(capsys.readouterr().out)
    # Nothing of what is not prepared; and the texts of two streams once.
    assert set(record["tasks"]) == {"shared_mt_sl", "shared_text_sl"}
    sizes = {row["language"]: row["sentences"] for row in record["languages"]}
    assert sizes == {"sl": 4, "en": 4}
    with StreamLoader(streams, seed=0, data_dir=corpus.root) as loader:
        batch = next(iter(loader))["mt"]
    with data_scope(corpus.root):
        model = load_vocabulary(VOCABULARY.sentencepiece_model_file)
    found = {
        (model.decode(text[:length]), model.decode(translation[:translation_length]))
        for text, length, translation, translation_length in zip(
            *(batch[n] for n in ("text", "text_length", "translation", "translation_length")),
            strict=True,
        )
    }
    records = corpus.records["mt_sl_train"]
    assert found == {(record["text"], record["translation"]) for record in records}
    # Whoever adds a corpus later has to take a decision.
    capsys.readouterr()
    assert main([*command, "--task", "tinyvox_text"]) == 2
    assert (
        "trained with other options (tasks ['shared_mt_sl', 'shared_text_sl'])"
        in capsys.readouterr().err
    )
    Path(record["path"]).unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--task", "tinyvox_txt"], "unknown task or mixture 'tinyvox_txt'"),
        (["tiny", "--task", "tinyvox_speech"], "'tinyvox_speech' has no text"),
        (["no/name", "--task", "tinyvox_text"], "'no/name' is not a name"),
        (["tiny", "--task", "tinyvox_text", "--size", "9"], "ask for at least"),
        (["tiny", "--task", "tinyvox_text", "--temperature", "0"], "not a number above 0"),
        (["tiny", "--task", "tinyvox_text", "--coverage", "0.1"], "coverage is 0.1"),
        (["tiny"], "no task uses the vocabulary 'tiny'"),
    ],
)
def test_mistakes_are_one_line(
    corpus, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vocabulary", *words, "--data_dir", str(corpus.root)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.splitlines()[-1].startswith("error: ")
    assert not (corpus.root / "vocabularies" / "tiny.model").exists()


def test_what_is_not_prepared_is_named(corpus, tmp_path: Path) -> None:
    import itertools

    from maestro_jax.batches import StreamConfig
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.stream_tasks import PreparedVocabulary
    from maestro_jax.data.task_registry import add_language_mixture
    from maestro_jax.data.vocabulary_training import VocabularyRequest, train_vocabulary
    from maestro_jax.tasks.corpus_tasks import add_corpus_task

    with pytest.raises(UserError, match="not prepared.*maestro prepare tinyvox"):
        train_vocabulary("v", VocabularyRequest(tasks=TASKS), data_dir=tmp_path)
    with pytest.raises(UserError, match="is prepared; prepare a corpus first"):
        train_vocabulary("multilingual", VocabularyRequest(), data_dir=tmp_path)
    vocabulary = PreparedVocabulary("vocabularies/tinyvox.model", "maestro prepare tinyvox")
    for language in ("cs", "hu"):
        add_corpus_task("unmade", language, stream="text", language=language, vocabulary=vocabulary)
    add_language_mixture(
        "partly_made", ["tinyvox_text_de", "unmade_text_cs", "tinyvox_text_sl", "unmade_text_hu"]
    )
    message = (
        "2 of the 4 tasks of 'partly_made' are not prepared.*unmade_text_cs, unmade_text_hu; run"
    )
    with pytest.raises(UserError, match=message):
        train_vocabulary("v", VocabularyRequest(tasks=("partly_made",)), data_dir=corpus.root)
    streams = {"text": StreamConfig(mixture="partly_made", batch_size=2, text_tokens=40)}
    with pytest.raises(UserError, match=message):
        list(itertools.islice(StreamLoader(streams, seed=0, data_dir=corpus.root), 1))
    remedy = "maestro prepare manifest --name unmade --source_dir DIR --languages cs"
    with pytest.raises(UserError, match=remedy):
        train_vocabulary("v", VocabularyRequest(tasks=("unmade_text_cs",)), data_dir=corpus.root)
