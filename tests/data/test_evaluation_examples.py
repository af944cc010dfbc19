import numpy as np
import pytest

from maestro_jax.errors import UserError
from maestro_jax.text.languages import LANGUAGES
from maestro_jax.text.vocabularies import ByteVocabulary, load_vocabulary


def examples(corpus, name, split="test", **arguments):
    from maestro_jax.data.evaluation_examples import evaluation_examples

    return list(evaluation_examples(name, split, corpus.root, **arguments))


def test_every_example_once_in_order(corpus):
    found = examples(corpus, "tinyvox_paired")
    records = corpus.records["paired_de_test"] + corpus.records["paired_sl_test"]
    assert len(found) == len(records)
    for example, record in zip(found, records, strict=True):
        assert example.features["audio"].dtype == np.int16
        np.testing.assert_array_equal(example.features["audio"], record["audio"])
        assert example.languages == {"language": LANGUAGES.index(record["language"])}
        for key in ("id", "text", "raw_text", "translation", "language", "speaker"):
            assert example.strings[key] == record[key]
        assert example.strings["task"] == f"tinyvox_paired_{record['language']}"


@pytest.mark.extended
@pytest.mark.parametrize("count", [1, 2, 3, 5, 50])
def test_shards_have_every_example_once(corpus, count):
    """Also if the shards are more than the examples, and if they do not divide them."""

    def key(example):
        return example.strings["task"], example.index, example.strings["id"]

    everything = [key(one) for one in examples(corpus, "tinyvox_paired")]
    shards = [
        [key(one) for one in examples(corpus, "tinyvox_paired", shard=(index, count))]
        for index in range(count)
    ]
    assert sorted(one for shard in shards for one in shard) == sorted(everything)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 2  # One per task.


def test_chosen_examples_are_read_and_no_others(corpus):
    everything = examples(corpus, "tinyvox_paired")
    chosen = np.random.default_rng(0).integers(0, 2, len(everything)).astype(bool)
    chosen[0] = not chosen[-1]
    found = examples(corpus, "tinyvox_paired", chosen=chosen)
    expected = [one for one, wanted in zip(everything, chosen, strict=True) if wanted]
    assert 0 < len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.index, one.strings, one.languages) == (
            other.index,
            other.strings,
            other.languages,
        )
        np.testing.assert_array_equal(one.features["audio"], other.features["audio"])
    assert not examples(corpus, "tinyvox_paired", chosen=np.zeros(len(everything), bool))


def test_a_source_of_files_is_divided_by_examples():
    """seqio's own sources divide by files; with fewer files than shards some would be empty."""
    import seqio
    import tensorflow as tf

    from maestro_jax.data.evaluation_examples import evaluation_examples

    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_tensor_slices(
            {"audio": np.arange(7, dtype=np.int16)[:, None], "text": [str(n) for n in range(7)]}
        )

    name = "divided_by_examples"
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=["test"]),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={
            "audio": seqio.ContinuousFeature(dtype=tf.int16, rank=1),
            "text": seqio.Feature(seqio.ByteVocabulary(0), add_eos=False),
        },
    )
    shards = [list(evaluation_examples(name, "test", shard=(n, 3))) for n in range(3)]
    assert [[int(one.features["audio"][0]) for one in shard] for shard in shards] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
    # An example without an id is named by its place, whoever reads it.
    assert [one.strings["id"] for one in shards[1]] == [f"{name}:1", f"{name}:4"]


def test_tokens_of_translations(corpus):
    vocabulary = load_vocabulary(corpus.root / "vocabularies" / "tinyvox.model")
    for example in examples(corpus, "tinyvox_st_de", features=("translation",)):
        assert example.languages["target_language"] == LANGUAGES.index("en")
        tokens = example.features["translation"].tolist()
        assert vocabulary.decode(tokens) == example.strings["translation"]
        assert example.strings["text"]


def test_a_model_brings_its_own_vocabulary(corpus, tmp_path):
    """Neither the file of the data is read, nor another vocabulary taken for the model's."""
    own = ByteVocabulary()
    (tmp_path / "tinyvox").symlink_to(corpus.root / "tinyvox")
    from maestro_jax.data.evaluation_examples import evaluation_examples

    found = list(
        evaluation_examples("tinyvox_paired", "test", tmp_path, features=("text",), vocabulary=own)
    )
    assert found
    for example in found:
        assert own.decode(example.features["text"].tolist()) == example.strings["text"]
    # TensorFlow wraps what is raised while it traces a preprocessor.
    with pytest.raises(Exception, match="there is no vocabulary"):
        list(evaluation_examples("tinyvox_paired", "test", tmp_path))


def test_lengths_are_those_of_the_records(corpus):
    from maestro_jax.data.evaluation_examples import evaluation_lengths

    lengths = evaluation_lengths("tinyvox_paired", "test", corpus.root)
    found = examples(corpus, "tinyvox_paired")
    assert lengths[:, 0].tolist() == [len(one.features["audio"]) for one in found]


def test_useful_messages(corpus, tmp_path):
    from maestro_jax.data.evaluation_examples import evaluation_examples

    with pytest.raises(UserError, match="Did you mean"):
        examples(corpus, "tinyvox_piared")
    with pytest.raises(UserError, match="no split 'dev'"):
        examples(corpus, "tinyvox_paired", split="dev")
    with pytest.raises(UserError, match="no 'audio', which this evaluation reads"):
        examples(corpus, "tinyvox_mt", split="train")
    with pytest.raises(UserError, match="run `maestro prepare tinyvox`"):
        evaluation_examples("tinyvox_paired", "test", tmp_path)


def test_a_test_set_of_which_nothing_was_prepared_is_named(corpus):
    from maestro_jax.data.data_dir import data_scope
    from maestro_jax.data.indexed_source import IndexedTfdsSource

    source = IndexedTfdsSource("tinyvox/small", {"test": "paired_hr_test"}, "maestro prepare it")
    with (
        data_scope(corpus.root),
        pytest.raises(UserError, match=r"no split 'paired_hr_test'; run .* --overwrite"),
    ):
        source.num_input_examples("test")
