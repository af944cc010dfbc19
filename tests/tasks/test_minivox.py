"""MiniVox as a TFDS data set, in a handful of examples."""

import numpy as np
import pytest

from maestro_jax.data.byte_vocabulary import ByteVocabulary
from maestro_jax.data.synthesis.config import CorpusConfig
from maestro_jax.data.synthesis.corpus import make_example
from maestro_jax.data.vocabularies import TokenVocabulary
from maestro_jax.errors import UserError
from maestro_jax.tasks import minivox

CORPUS = CorpusConfig(
    languages=("en", "sl"),
    paired={"en": 3, "sl": 2},
    speech=2,
    text=60,
    mt=60,
    validation=1,
    test=2,
    vocab_size=60,
)
CONFIG = minivox.MiniVoxConfig(name="unit", corpus=CORPUS, workers=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    # What an interrupted build leaves.
    leftover = directory / "minivox" / "unit" / "1.0.0.incompleteABC"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("half")
    minivox.prepare(CONFIG, directory)
    assert not leftover.exists()
    return directory


def test_round_trip(root):
    builder = minivox.Minivox(config=CONFIG, data_dir=root)
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
    vocabulary = TokenVocabulary.load(minivox.vocabulary_path("unit", root))
    builder = minivox.Minivox(config=CONFIG, data_dir=root)
    for example in builder.as_data_source("mt_sl_train"):
        for field in ("text", "translation"):
            text = example[field].decode()
            assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_corpus_of_bytes(tmp_path):
    nothing = {"speech": 0, "text": 2, "mt": 0, "validation": 1, "test": 1}
    corpus = CorpusConfig(languages=("en",), paired={"en": 1}, vocab_kind="byte", **nothing)
    config = minivox.MiniVoxConfig(name="bytes", corpus=corpus, workers=1)
    minivox.prepare(config, tmp_path)
    vocabulary = TokenVocabulary.load(minivox.vocabulary_path("bytes", tmp_path))
    assert vocabulary == ByteVocabulary() and vocabulary.vocab_size == 259


def test_preparing_again_changes_nothing(root, capfd):
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.*_record*")}
    model = minivox.vocabulary_path("unit", root)
    before = model.stat().st_mtime_ns
    minivox.prepare(CONFIG, root)
    assert files == {path: path.stat().st_mtime_ns for path in root.rglob("*.*_record*")}
    assert files
    assert model.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


def test_a_lost_vocabulary_is_trained_again(root):
    model = minivox.vocabulary_path("unit", root)
    content = model.read_bytes()
    model.unlink()
    minivox.prepare(CONFIG, root)
    assert model.read_bytes() == content


def test_other_sizes_under_the_same_name_are_refused(root):
    other = minivox.MiniVoxConfig(name="unit", corpus=CorpusConfig(**(vars(CORPUS) | {"text": 7})))
    with pytest.raises(UserError, match="other sizes"):
        minivox.prepare(other, root)


def test_unknown_config_names_near_misses(tmp_path):
    with pytest.raises(UserError, match=r"'smal'.*Did you mean 'small'"):
        minivox.prepare("smal", tmp_path)


def test_an_error_while_building_leaves_nothing_behind(tmp_path, monkeypatch):
    broken = minivox.MiniVoxConfig(
        name="broken", corpus=CorpusConfig(**(vars(CORPUS) | {"languages": ("en", "xx")}))
    )
    with pytest.raises(UserError, match="'xx'"):
        minivox.prepare(broken, tmp_path)
    assert not list(tmp_path.glob("minivox/broken/1.0.0*"))


def test_shipped_configs():
    assert set(minivox.Minivox.builder_configs) == {"tiny", "small", "low_resource", "full"}
