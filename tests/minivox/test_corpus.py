"""Examples: the same to the byte wherever they are made, and fair between splits."""

import dataclasses
import pathlib
import random

import numpy as np
import pytest

from maestro_jax import espeak
from maestro_jax.errors import UserError
from maestro_jax.minivox.config import LOW_RESOURCE, SMALL, CorpusConfig, full
from maestro_jax.minivox.corpus import ExamplePool, make_example
from maestro_jax.minivox.sentences import SPEAKABLE
from maestro_jax.minivox.speech import VARIANTS, speakers

CONFIG = CorpusConfig(
    languages=SPEAKABLE,
    paired=dict.fromkeys(SPEAKABLE, 6),
    speech=6,
    text=10,
    mt=10,
    validation=3,
    test=3,
)


def _content(example):
    fields = dataclasses.asdict(example)
    return fields | {"audio": example.audio.tobytes()}


@pytest.mark.extended
def test_examples_do_not_depend_on_order_or_process():
    places = [
        (split, index)
        for split, size in CONFIG.splits().items()
        for index in range(size)
        if "_de_" in split or "_sl_" in split
    ]
    first = {place: _content(make_example(CONFIG, *place)) for place in places}
    random.Random(0).shuffle(places)
    for place in places:
        assert _content(make_example(CONFIG, *place)) == first[place], place
    with ExamplePool(workers=2) as pool:
        for split in ("paired_de_train", "speech_sl_train", "mt_de_train"):
            made = list(pool.examples(CONFIG, split, 6))
            assert [_content(example) for example in made] == [first[split, i] for i in range(6)]


@pytest.mark.extended
def test_a_pool_keeps_the_order_of_many_chunks():
    with ExamplePool(workers=2) as pool:
        ids = [example.id for example in pool.examples(CONFIG, "text_en_train", 333)]
    assert ids == [f"text_en_train_{index:06d}" for index in range(333)]


def test_a_pool_hands_on_user_errors(tmp_path):
    config = dataclasses.replace(CONFIG, languages=("xx",))
    with ExamplePool(workers=1) as pool, pytest.raises(UserError, match="'xx'"):
        list(pool.examples(config, "text_xx_train", 1))


def test_larger_corpora_begin_with_smaller_ones():
    larger = dataclasses.replace(CONFIG, speech=600, test=300)
    small, large = (make_example(config, "paired_fr_test", 2) for config in (CONFIG, larger))
    assert _content(small) == _content(large)


def test_another_seed_is_another_corpus():
    other = dataclasses.replace(CONFIG, seed=1)
    texts = [
        [make_example(config, "text_de_train", index).text for index in range(10)]
        for config in (CONFIG, other)
    ]
    assert texts[0] != texts[1]


def test_audio_is_16_khz_speech_within_its_bounds():
    for split in CONFIG.splits():
        if not split.startswith(("paired_", "speech_")):
            continue
        for index in range(3):
            audio = make_example(CONFIG, split, index).audio
            assert audio.dtype == np.int16
            assert 1.2 <= len(audio) / 16_000 <= 4.6
            assert np.abs(audio.astype(int)).max() <= 0.9 * 32767 + 1
            level = 20 * np.log10(np.sqrt(np.mean(audio.astype(float) ** 2)) / 32768)
            assert -34 < level < -18
            # Speech has most of its power below 4 kHz and much above 300 Hz, whatever the noise.
            power = np.abs(np.fft.rfft(audio)) ** 2
            hertz = np.fft.rfftfreq(len(audio), 1 / 16_000)
            assert power[hertz < 4000].sum() > 0.5 * power.sum()


def test_streams_have_their_features_only():
    speech = make_example(CONFIG, "speech_de_train", 0)
    assert speech.audio.size and not speech.text and not speech.raw_text and not speech.translation
    text = make_example(CONFIG, "text_de_train", 0)
    assert speech.phonemes[-1].end == len(speech.audio) and text.phonemes == ()
    assert not text.audio.size and text.text and text.raw_text and not text.translation
    assert not text.speaker
    mt = make_example(CONFIG, "mt_de_train", 0)
    assert not mt.audio.size and mt.text and mt.translation
    paired = make_example(CONFIG, "paired_de_train", 0)
    assert paired.audio.size and paired.text and paired.translation and paired.speaker
    assert not make_example(CONFIG, "paired_en_train", 0).translation


def test_longer_sentences_fit_as_well():
    config = dataclasses.replace(full(hours=1), max_seconds=6.0)
    lengths = [len(make_example(config, "paired_pl_train", index).audio) for index in range(6)]
    assert max(lengths) <= 6.0 * 16_000
    words = [len(make_example(config, "text_pl_train", index).text.split()) for index in range(50)]
    assert max(words) > 15


def test_heldout_voices_are_unheard():
    parts = list(VARIANTS.values())
    assert sum(map(len, parts)) == len(set().union(*parts))
    names = [{speaker.name for speaker in speakers(part)} for part in VARIANTS]
    assert sum(map(len, names)) == len(set().union(*names))
    # Every voice exists; espeak-ng would silently fall back on another one.
    directory = pathlib.Path(espeak.library_files()[1]) / "voices" / "!v"
    variants = {path.name for path in directory.iterdir()}
    assert set().union(*parts) - {""} <= variants
    for index in range(3):
        heard = make_example(CONFIG, "paired_en_test", index).speaker
        assert heard.rsplit("-", 1)[0] in VARIANTS["test"]


def test_heldout_sentences_are_unseen():
    # As sentences are drawn, but without speaking them.
    silent = dataclasses.replace(CONFIG, seed=5)
    train, train_english = set(), set()
    for language in ("de", "sl"):
        for index in range(2500):
            example = make_example(silent, f"mt_{language}_train", index)
            train.add(example.text)
            train_english.add(example.translation)
    for part in ("validation", "test"):
        for language in ("de", "sl"):
            for index in range(300):
                example = make_example(silent, f"mt_{language}_{part}", index)
                assert example.text not in train
                assert example.translation not in train_english


def test_splits_of_the_small_corpus():
    sizes = SMALL.splits()
    assert 10 * sizes["paired_sl_train"] == sizes["paired_de_train"]
    assert "mt_en_train" not in sizes
    assert {split.split("_")[1] for split in sizes} == {"en", "de", "sl"}
    assert {split.split("_")[1] for split in full().splits()} == set(SPEAKABLE)


def test_the_low_resource_corpus_is_the_small_one_with_less_slovene_speech():
    small, low = SMALL.splits(), LOW_RESOURCE.splits()
    assert low["paired_sl_train"] == 24
    assert low["text_sl_train"] > low["text_de_train"] + low["text_en_train"]
    assert not any(split.startswith("mt_") for split in low)
    spoken = {split for split in small if not split.startswith(("text_", "mt_"))}
    assert {split for split in spoken if small[split] != low[split]} == {"paired_sl_train"}
    for split, index in (("paired_sl_train", 23), ("paired_sl_test", 99), ("text_sl_train", 3)):
        ours, theirs = (make_example(config, split, index) for config in (LOW_RESOURCE, SMALL))
        assert ours.text == theirs.text and ours.speaker == theirs.speaker
        np.testing.assert_array_equal(ours.audio, theirs.audio)
