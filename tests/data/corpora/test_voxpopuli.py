"""VoxPopuli from both of its layouts to records, and through its tasks to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import layouts_voxpopuli as layouts
import numpy as np
import pytest
from spoken import issues_of, records, say

from maestro_jax.data.corpora.corpus import Corpus, find_corpus
from maestro_jax.data.corpora.prepare import PreparedConfig, prepare
from maestro_jax.data.corpora.voxpopuli import (
    AVERAGED_LANGUAGES,
    LANGUAGES,
    VoxPopuli,
    VoxPopuliText,
    VoxPopuliUnlabelled,
    is_in_subset,
)
from maestro_jax.data.processes import Processes
from maestro_jax.errors import UserError

Prepare = Callable[[Corpus, Path, str, Path], PreparedConfig]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("voxpopuli")
    layouts.lay_out(source)
    return source


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepare]:
    """Prepares a config with small parts; the process that does it takes seconds to start."""
    with Processes(1) as processes:

        def run(corpus: Corpus, source: Path, config: str, root: Path) -> PreparedConfig:
            return prepare(
                corpus, source, config, root, processes=processes, utterances_per_shard=3
            )

        yield run


def assert_says(audio: object, text: str, language: str) -> None:
    """Vorbis keeps the length of the audio and, but for details, its shape."""
    assert_sounds_like(audio, say(text, language))


def assert_sounds_like(audio: object, wanted: np.ndarray) -> None:
    assert isinstance(audio, np.ndarray) and audio.dtype == np.int16
    # A seek may be a sample off, for each of up to three pieces.
    assert abs(len(audio) - len(wanted)) <= 3
    length = min(len(audio), len(wanted))
    assert np.corrcoef(audio[:length], wanted[:length])[0, 1] > 0.98


def test_cut_speech(prepared: Prepare, source: Path, tmp_path: Path) -> None:
    corpus = VoxPopuli()
    assert corpus.configs(source) == ["de", "sl", "en_accented"]
    assert corpus.configs(source, ["en_accented"]) == ["en_accented"]
    result = prepared(corpus, source, "de", tmp_path)
    assert not issues_of(result)
    for part, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        found = records(result, split)
        assert [entry["id"] for entry in found] == list(layouts.GERMAN[part])
        for entry, (raw_text, text) in zip(found, layouts.GERMAN[part].values(), strict=True):
            assert (entry["raw_text"], entry["text"]) == (raw_text, text)
            assert (entry["language"], entry["speaker"]) == ("de", "96779")
            assert_says(entry["audio"], text, "de")

    *_, whole = result.splits
    assert (whole.split, whole.utterances, whole.published_hours) == ("all splits", 6, 282)
    samples = sum(
        len(e["audio"]) for split in ("train", "validation", "test") for e in records(result, split)
    )
    assert whole.hours == pytest.approx(samples / 16000 / 3600)


def test_accented_english_is_a_test(prepared: Prepare, source: Path, tmp_path: Path) -> None:
    result = prepared(VoxPopuli(), source, "en_accented", tmp_path)
    [test] = result.splits
    assert (test.split, test.utterances, test.published_hours) == ("test", 1, 28.88)
    [entry] = records(result, "test")
    assert (entry["language"], entry["text"]) == ("en", "one two three")
    assert_says(entry["audio"], "one two three", "en")


def test_whatever_is_wrong_with_cut_speech_is_counted(prepared: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "source"
    layouts.lay_out_cut(source)
    good = layouts.GERMAN["train"]
    first, second, *_ = good
    clips = source / "transcribed_data/de/2018"

    def row(name: str, raw_text: str, text: str) -> str:
        return "\t".join((name, raw_text, text, "1", "train", "male", "False", "None"))

    layouts.write_table(
        source,
        "de",
        "train",
        good,
        row(f"{layouts.SESSION}-de_gone", "Weg", "weg"),
        row(f"{layouts.SESSION}-de_broken", "Kaputt", "kaputt"),
        row(f"{layouts.SESSION}-de_nothing", "Nichts", "nichts"),
        row(f"{layouts.SESSION}-de_silent", "...", ""),
        row(first, "Eins", "eins"),
        row("", "Ohne", "ohne"),
        row(f"{layouts.SESSION}-de_tab", "Ein\tTabulator", "ein tabulator"),
    )
    whole = (clips / f"{second}.ogg").read_bytes()
    (clips / f"{layouts.SESSION}-de_broken.ogg").write_bytes(b"\0" * 64 + whole[64:])
    (clips / f"{layouts.SESSION}-de_nothing.ogg").write_bytes(b"")
    (source / "transcribed_data/de/asr_dev.tsv").unlink()

    result = prepared(VoxPopuli(), source, "de", tmp_path / "data")
    train, validation, test, _ = result.splits
    assert (train.listed, train.utterances) == (9, 4)
    expected = ["missing audio", "unreadable audio", "empty audio", "empty text", "duplicate id"]
    assert train.issues == dict.fromkeys([*expected, "bad value", "bad row"], 1)
    assert validation.explanation() == "1 missing table"
    assert (test.utterances, test.issues) == (1, {})
    assert ("empty text", "train", f"{layouts.SESSION}-de_silent") in issues_of(result)
    assert [entry["id"] for entry in records(result, "train")] == list(good)


def test_raw_speech_is_cut_out_of_its_sessions(prepared: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "source"
    name = f"{layouts.SLOVENE_SESSION}|sl_"
    layouts.lay_out_raw(
        source,
        f"{name}x|Raw|raw||train|male|soon|True",
        f"{name}y|Raw|raw||train|male|[]|True",
        f"{name}z|Raw|raw||train|male|[(2.0, 1.0)]|True",
        f"{name}other|Raw|raw||None|male|None|True",
        f"{name}given_up|Raw|raw||invalid|male|None|True",
        f"{name}misspelt|Raw|raw||trian|male|None|True",
        f"{name}late|Raw|raw||train|male|[(900.0, 901.0)]|True",
        f"{name}pipe|R|aw|raw||train|male|[(0.0, 1.0)]|True",
    )
    result = prepared(VoxPopuli(), source, "sl", tmp_path / "data")
    samples, spans = layouts.session(tuple(w for _, _, ws in layouts.SLOVENE for w in ws), "sl")
    found = [e for split in ("train", "validation", "test") for e in records(result, split)]
    for entry, (name, _, words) in zip(found, layouts.SLOVENE, strict=True):
        assert entry["id"] == f"{layouts.SLOVENE_SESSION}-{name}"
        assert entry["text"] == " ".join(words)
        own, spans = spans[: len(words)], spans[len(words) :]
        pieces = [samples[round(begin * 16000) : round(end * 16000)] for begin, end in own]
        assert_sounds_like(entry["audio"], np.concatenate(pieces))
        assert_sounds_like(entry["audio"], np.concatenate([say(word, "sl") for word in words]))
    assert [entry["speaker"] for entry in found] == ["", "124", "124", "124"]
    assert found[0]["raw_text"] == "" and found[1]["raw_text"] == '"Štiri.'
    train = result.splits[0]
    assert (train.listed, train.utterances) == (3, 2)
    assert train.issues == {"bad value": 3, "outside of audio": 1}
    assert result.lines == {"set aside": 2, "unknown split": 1, "bad row": 1}


def test_unlabelled_speech_by_subset(prepared: Prepare, source: Path, tmp_path: Path) -> None:
    corpus = VoxPopuliUnlabelled()
    assert corpus.configs(source) == ["400k_de", "10k_sl"]
    assert corpus.configs(source, ["sl", "10k_de", "10k_sd_sl"]) == [
        "10k_sl",
        "10k_de",
        "10k_sd_sl",
    ]
    first, second, earlier, committee = layouts.UNLABELLED
    for subset, events in {
        "10k": (first, second),
        "100k": (earlier, first, second),
        "400k": (earlier, first, committee, second),
    }.items():
        result = prepared(corpus, source, f"{subset}_de", tmp_path)
        found = records(result, "train")
        wanted = [
            (f"{e}_{n}", text) for e in events for n, text in enumerate(layouts.UNLABELLED[e])
        ]
        assert [entry["id"] for entry in found] == [name for name, _ in wanted]
        for entry, (_, text) in zip(found, wanted, strict=True):
            assert entry["language"] == "de" and entry["text"] == ""
            assert_says(entry["audio"], text, "de")
        published = {"10k": None, "100k": 4500, "400k": 23200}[subset]
        assert result.splits[0].published_hours == published


def test_raw_unlabelled_speech_is_cut_as_its_tables_say(prepared: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "source"
    [(event, words)] = layouts.UNLABELLED_RAW.items()
    layouts.lay_out_unlabelled_raw(
        source,
        f"{event}\tx\t3.0\tlater",
        f"{event}\ty\t3.0\t2.0",
        "PLENARY\t0\t1.0\t2.0",
        "20190301-0900-PLENARY_sl\t0\t1.0\t2.0",
    )
    corpus = VoxPopuliUnlabelled()
    result = prepared(corpus, source, "10k_sl", tmp_path / "data")
    found = records(result, "train")
    assert [entry["id"] for entry in found] == [f"{event}_0", f"{event}_1"]
    for entry, text in zip(found, words, strict=True):
        assert_says(entry["audio"], text, "sl")
    assert result.splits[0].issues == {"bad value": 3, "missing audio": 1}

    [turn] = records(prepared(corpus, source, "10k_sd_sl", tmp_path / "data"), "train")
    samples, spans = layouts.session(words, "sl")
    begin, end = round(spans[0][0] * 16000), round(spans[-1][1] * 16000)
    assert_sounds_like(turn["audio"], samples[begin:end])


def test_subsets_end_where_the_corpus_says() -> None:
    assert is_in_subset("20200731-0900-PLENARY_fr", "10k") and is_in_subset(
        "20190101-0900-PLENARY_fr", "10k"
    )
    for event in ("20200801-0900-PLENARY_fr", "20181231-0900-PLENARY_fr"):
        assert not is_in_subset(event, "10k") and is_in_subset(event, "100k")
    assert not is_in_subset("20190301-0900-COMMITTEE_fr", "100k")
    assert is_in_subset("20190301-0900-COMMITTEE_fr", "400k")


def test_text(prepared: Prepare, source: Path, tmp_path: Path) -> None:
    corpus = VoxPopuliText()
    assert corpus.configs(source) == ["de"]
    result = prepared(corpus, source, "de", tmp_path)
    found = records(result, "train")
    assert [(entry["id"], entry["text"]) for entry in found] == [
        (str(number), text) for number, text in enumerate(layouts.SENTENCES, start=1) if text
    ]
    assert all(len(entry["audio"]) == 0 for entry in found)
    assert result.splits[0].issues == {"empty text": 1}


def test_what_is_not_there_is_one_line(prepared: Prepare, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no transcribed languages in"):
        VoxPopuli().configs(tmp_path)
    with pytest.raises(UserError, match="'fr' is not among the transcribed languages"):
        VoxPopuli().configs(source, ["fr"])
    with pytest.raises(UserError, match="no subset '20k' of VoxPopuli"):
        VoxPopuliUnlabelled().configs(source, ["20k_de"])
    with pytest.raises(UserError, match="'fr' is not among the languages with unlabelled"):
        VoxPopuliUnlabelled().configs(source, ["10k_fr"])
    with pytest.raises(UserError, match="no languages with unlabelled speech in"):
        VoxPopuliUnlabelled().configs(tmp_path)
    (tmp_path / "raw_audios/fr/2019").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there is no unlabelled_v2\.tsv\.gz in"):
        prepared(VoxPopuliUnlabelled(), tmp_path, "10k_fr", tmp_path / "data")


def test_the_published_hours_are_those_of_the_repository() -> None:
    sizes = {code: VoxPopuli().published(Path(), code)["all splits"] for code in LANGUAGES}
    assert len(LANGUAGES) == 16 and sum(size.hours for size in sizes.values()) == 1791
    assert len(AVERAGED_LANGUAGES) == 14
    assert sum(sizes[code].hours for code in AVERAGED_LANGUAGES) == 1786


def test_from_the_command_to_batches(
    prepared: Prepare, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maestro_jax.batches import StreamConfig
    from maestro_jax.cli.main import main
    from maestro_jax.data.loader import StreamLoader
    from maestro_jax.data.task_registry import list_tasks, register_shipped_tasks
    from maestro_jax.text.vocabularies import load_vocabulary, train_sentencepiece

    root = tmp_path / "data"
    options = ["--source_dir", str(source), "--data_dir", str(root), "--workers", "1"]
    assert main(["prepare", "voxpopuli", "--languages", "de", *options]) == 0
    printed = capsys.readouterr().out
    assert "voxpopuli/de" in printed and "all splits" in printed and "282" in printed
    prepared(VoxPopuliUnlabelled(), source, "10k_de", root)
    prepared(VoxPopuliText(), source, "de", root)

    texts = [text for part in layouts.GERMAN.values() for _, text in part.values()]
    model = root / "vocabularies" / "multilingual.model"
    train_sentencepiece([*texts, *layouts.SENTENCES[:2]], model, 40)
    vocabulary = load_vocabulary(model)
    register_shipped_tasks()
    seconds = {"audio_samples": 60000}
    streams = {
        "paired": StreamConfig(
            mixture="voxpopuli_paired_de", batch_size=4, text_tokens=40, **seconds
        ),
        "speech": StreamConfig(
            mixture="voxpopuli_unlabelled_speech_10k_de", batch_size=3, **seconds
        ),
        "text": StreamConfig(mixture="voxpopuli_text_de", batch_size=3, text_tokens=40),
    }
    with StreamLoader(streams, seed=1, data_dir=root) as loader:
        batch = next(iter(loader))
    paired, text = batch["paired"], batch["text"]
    spoken = [
        vocabulary.decode(tokens[:length].tolist())
        for tokens, length in zip(paired["text"], paired["text_length"], strict=True)
    ]
    assert sorted(spoken) == sorted(text for _, text in layouts.GERMAN["train"].values())
    for audio, length, words in zip(paired["audio"], paired["audio_length"], spoken, strict=True):
        assert_says(audio[:length], words, "de")
    written = [
        vocabulary.decode(tokens[:length].tolist())
        for tokens, length in zip(text["text"], text["text_length"], strict=True)
    ]
    assert sorted(written) == sorted(filter(None, layouts.SENTENCES))
    assert (batch["speech"]["audio_length"] > 0).all()

    rows = {row.name: row for row in list_tasks(str(root))}
    assert rows["voxpopuli_paired_de"].examples == {"train": 4, "validation": 1, "test": 1}
    assert set(rows["voxpopuli_paired"].languages) == set(LANGUAGES)
    assert set(rows["voxpopuli_paired_14_upsampled"].languages) == set(AVERAGED_LANGUAGES)
    assert len(rows["voxpopuli_unlabelled_speech_400k"].languages) == 23
    for name in ("voxpopuli", "voxpopuli_unlabelled", "voxpopuli_text"):
        assert find_corpus(name).name == name
