import subprocess
import sys

import numpy as np
import pytest

from maestro_jax.batches import (
    STREAM_FEATURES,
    StreamConfig,
    batch_shapes,
    check_streams,
    synthetic_batch,
)
from maestro_jax.errors import UserError

STREAMS = {
    "speech": StreamConfig(mixture="m", batch_size=4, audio_samples=1600),
    "text": StreamConfig(mixture="m", batch_size=2, text_tokens=9),
    "paired": StreamConfig(mixture="m", batch_size=3, audio_samples=1700, text_tokens=8),
    "mt": StreamConfig(mixture="m", batch_size=2, text_tokens=7, translation_tokens=6),
    "st": StreamConfig(mixture="m", batch_size=1, audio_samples=800, translation_tokens=5),
}


def test_shapes_of_every_stream():
    shapes = batch_shapes(STREAMS)
    for stream, names in STREAM_FEATURES.items():
        assert tuple(shapes[stream]) == names
    assert shapes["speech"]["audio"].shape == (4, 1600)
    assert shapes["speech"]["audio"].dtype == np.int16
    assert shapes["paired"]["text"].shape == (3, 8)
    assert shapes["mt"]["translation"].shape == (2, 6)
    assert shapes["st"]["target_language"].shape == (1,)
    assert shapes["st"]["audio_length"].dtype == np.int32


def test_synthetic_batch_fits_the_shapes_and_is_padded():
    batch = synthetic_batch(STREAMS, seed=3, vocab_size=20)
    again = synthetic_batch(STREAMS, seed=3, vocab_size=20)
    other = synthetic_batch(STREAMS, seed=4, vocab_size=20)
    for stream, shapes in batch_shapes(STREAMS).items():
        assert tuple(batch[stream]) == tuple(shapes)
        for name, spec in shapes.items():
            values = batch[stream][name]
            assert (values.shape, values.dtype) == (spec.shape, spec.dtype)
            assert (values == again[stream][name]).all()
            if f"{name}_length" in shapes:
                for row, length in zip(values, batch[stream][f"{name}_length"], strict=True):
                    assert 1 <= length <= row.size
                    assert not row[length:].any()
                    if name != "audio":
                        assert row[:length].min() >= 3 and row.max() < 20
    assert (batch["speech"]["audio"] != other["speech"]["audio"]).any()


@pytest.mark.parametrize(
    "streams,message",
    [
        ({}, "no stream"),
        ({"pared": STREAMS["paired"]}, "Did you mean 'paired'"),
        ({"paired": STREAMS["speech"]}, "text_tokens > 0"),
        ({"text": STREAMS["speech"]}, "no feature 'audio'"),
        ({"speech": STREAMS["paired"]}, "text_tokens is 8"),
    ],
)
def test_wrong_streams(streams, message):
    with pytest.raises(UserError, match=message):
        check_streams(streams)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"mixture": "", "batch_size": 1}, "mixture"),
        ({"mixture": "m", "batch_size": 0}, "at least 1"),
        ({"mixture": "m", "batch_size": 2.5}, "batch_size"),
        ({"mixture": "m", "batch_size": 1, "text_tokens": -1}, "text_tokens"),
        ({"mixture": "m", "batch_size": 1, "audio_samples": 1.5}, "audio_samples"),
    ],
)
def test_wrong_configuration(arguments, message):
    with pytest.raises(UserError, match=message):
        StreamConfig(**arguments)


def test_streams_vocabularies_audio_and_plan_need_no_tensorflow():
    program = (
        "import sys\n"
        "import maestro_jax.batches, maestro_jax.audio.reading, maestro_jax.text.vocabularies\n"
        "import maestro_jax.data.index_plan, maestro_jax.data.padding\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
