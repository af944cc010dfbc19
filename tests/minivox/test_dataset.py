"""MiniVox as a TFDS data set, in a handful of examples."""

import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.minivox import dataset
from maestro_jax.minivox.config import CorpusConfig
from maestro_jax.minivox.corpus import make_example
from maestro_jax.text.vocabularies import ByteVocabulary, load_vocabulary

CORPUS = CorpusConfig(
    languages=("en", "sl"),
    paired={"en": 3, "sl": 2},
    speech=2,
    text=60,
    mt=60,
    validation=1,
    test=2,
    vocab_size=60,
    phonemes=True,
)
CONFIG = dataset.MiniVoxConfig(name="unit", corpus=CORPUS, workers=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    # What an interrupted build leaves.
    leftover = directory / "minivox" / "unit" / "1.0.0.incompleteABC"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    dataset.prepare(CONFIG, directory)
    assert not leftover.exists()
    return directory


def test_round_trip(root):
    builder = dataset.Minivox(config=CONFIG, data_dir=root)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == CORPUS.splits()
    for split, size in sizes.items():
        source = builder.as_data_source(split)
        for index in {0, size - 1}:
            read, made = source[index], make_example(CORPUS, split, index)
            assert read["audio"].dtype == np.int16
            assert np.array_equal(read["audio"], made.audio)
            for field in ("text", "raw_text", "translation", "language", "speaker", "id"):
                assert read[field].decode() == getattr(made, field)


def test_vocabulary_covers_the_training_texts(root):
    vocabulary = load_vocabulary(dataset.vocabulary_path("unit", root))
    builder = dataset.Minivox(config=CONFIG, data_dir=root)
    for example in builder.as_data_source("mt_sl_train"):
        for field in ("text", "translation"):
            text = example[field].decode()
            assert vocabulary.decode(vocabulary.encode(text)) == text


def test_tasks_of_phonemes_read_the_same_examples(root):
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.task_registry import get_task_or_mixture
    from maestro_jax.espeak import phonemes
    from maestro_jax.tasks.minivox_tasks import add_minivox

    vocabulary = load_vocabulary(dataset.vocabulary_path("unit", root, phonemes=True))
    get_task_or_mixture("minivox_tiny_text")
    add_minivox("unit", CORPUS)
    with data_scope(root):
        for stream in ("paired", "text"):
            [task] = [
                task
                for task in get_task_or_mixture(f"minivox_unit_phonemes_{stream}").tasks
                if task.languages == ("sl",)
            ]
            examples = list(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
            letters = [make_example(CORPUS, f"{stream}_sl_train", i).text for i in range(2)]
            written = [vocabulary.decode(each["text"].tolist()) for each in examples[:2]]
            assert written == phonemes(letters, "sl") != letters


@pytest.mark.extended
def test_a_corpus_of_bytes(tmp_path):
    nothing = {"speech": 0, "text": 2, "mt": 0, "validation": 1, "test": 1}
    corpus = CorpusConfig(languages=("en",), paired={"en": 1}, vocab_kind="byte", **nothing)
    config = dataset.MiniVoxConfig(name="bytes", corpus=corpus, workers=1)
    dataset.prepare(config, tmp_path)
    vocabulary = load_vocabulary(dataset.vocabulary_path("bytes", tmp_path))
    assert vocabulary == ByteVocabulary() and vocabulary.vocab_size == 259


def test_preparing_again_changes_nothing(root, capfd):
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.*_record*")}
    model = dataset.vocabulary_path("unit", root)
    before = model.stat().st_mtime_ns
    dataset.prepare(CONFIG, root)
    assert files == {path: path.stat().st_mtime_ns for path in root.rglob("*.*_record*")}
    assert files
    assert model.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


def test_a_lost_vocabulary_is_trained_again(root):
    model = dataset.vocabulary_path("unit", root)
    content = model.read_bytes()
    model.unlink()
    dataset.prepare(CONFIG, root)
    assert model.read_bytes() == content


def test_other_sizes_under_the_same_name_are_refused(root):
    other = dataset.MiniVoxConfig(name="unit", corpus=CorpusConfig(**(vars(CORPUS) | {"text": 7})))
    with pytest.raises(UserError, match="other sizes"):
        dataset.prepare(other, root)


def test_unknown_config_names_near_misses(tmp_path):
    with pytest.raises(UserError, match=r"'smal'.*Did you mean 'small'"):
        dataset.prepare("smal", tmp_path)


@pytest.mark.extended
def test_an_error_while_building_leaves_nothing_behind(tmp_path, monkeypatch):
    broken = dataset.MiniVoxConfig(
        name="broken", corpus=CorpusConfig(**(vars(CORPUS) | {"languages": ("en", "xx")}))
    )
    with pytest.raises(UserError, match="'xx'"):
        dataset.prepare(broken, tmp_path)
    assert not list(tmp_path.glob("minivox/broken/1.0.0*"))


def test_shipped_configs():
    names = {"tiny", "small", "low_resource", "study", "everyday", "calendar", "full"}
    assert set(dataset.Minivox.builder_configs) == names
