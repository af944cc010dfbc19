"""Alignment of a recording against every path through the model's own lattice."""

from __future__ import annotations

import functools
import itertools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.cli import gin_config
from maestro_jax.data.audio import to_int16
from maestro_jax.data.vocabularies import train_sentencepiece
from maestro_jax.errors import UserError
from maestro_jax.evaluation.aligner import Aligner, tokens_of, words_of
from maestro_jax.evaluation.alignment_formats import Unit
from maestro_jax.losses.transducer_arcs import log_probabilities

FRAME = 0.04
SAMPLES = 5200  # 31 mel frames, halved twice: 8 frames
SMALL = {
    name: "16" for name in ("FEATURES", "HIDDEN", "TEXT_FEATURES", "CODES", "CODE_FEATURES")
} | {"SPEECH_LAYERS": "1", "SHARED_LAYERS": "1", "VOCAB_SIZE": "16"}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "letters.model"
    return train_sentencepiece(["ab ba cab", "abc d'a"], path, 16, "char")


def narrow_run(one_label_per_frame):
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin"]
    bindings = SMALL | {
        "STEPS": "10",
        "WARMUP_STEPS": "1",
        "TransducerDecoder.one_label_per_frame": str(one_label_per_frame),
    }
    return gin_config.parse_and_build([*files, "data/minivox_tiny.gin"], bindings)


@pytest.fixture(scope="module")
def params():
    """Random weights of the shipped tiny model, made narrow; no option of the lattice adds any."""
    boxed = jax.jit(
        narrow_run(False).model.init, compiler_options={"xla_backend_optimization_level": 0}
    )({"params": jax.random.key(1)}, {})
    return nn.unbox(boxed)["params"]


@pytest.fixture(scope="module", params=[False, True], ids=["many", "one_label_per_frame"])
def transcriber(request, vocabulary, params):
    """Stands where a loaded model would."""
    run = narrow_run(request.param)
    mesh = run.partitioning.mesh()
    return types.SimpleNamespace(
        run=run,
        params=params,
        vocabulary=vocabulary,
        translates=False,
        data_shards=mesh.shape["data"] * mesh.shape["fsdp"],
    )


@pytest.fixture(scope="module")
def samples():
    return (0.1 * np.random.default_rng(0).normal(size=SAMPLES)).astype(np.float32)


def log_lattice(transcriber, samples, tokens):
    """Log-probabilities [frames, labels + 1, vocab], step by step, without padding."""
    call = functools.partial(transcriber.run.model.apply, {"params": transcriber.params})

    @jax.jit
    def run(audio):
        features, mask = call(audio, jnp.asarray([SAMPLES]), method="features")
        encoded = call(features, mask, method="encode_speech")
        frames = call(call(encoded, mask, method="encode_shared"), method="project_frames")
        labels = jnp.asarray([[0, *tokens]])
        predicted, _ = call(labels, call(1, method="decoder_state"), method="predict_labels")
        return call(frames[:, :, None], predicted[:, None], method="joint"), mask

    logits, mask = run(to_int16(samples)[None])
    return np.asarray(log_probabilities(logits[0]), np.float64)[: int(mask.sum())]


def best_path(lattice, tokens, one_label_per_frame):
    """Emission frames and log-probability of the likeliest path, by trying all."""
    frames = len(lattice)
    choose = (
        itertools.combinations if one_label_per_frame else itertools.combinations_with_replacement
    )
    best = (-np.inf, ())
    for path in choose(range(frames), len(tokens)):
        score = sum(lattice[frame, u, tokens[u]] for u, frame in enumerate(path))
        for frame in range(frames):
            if not (one_label_per_frame and frame in path):
                score += lattice[frame, sum(p <= frame for p in path), 0]
        best = max(best, (score, path))
    return best


def test_times_are_those_of_the_best_of_all_paths(transcriber, samples):
    found = Aligner(transcriber).align(samples, "ab c")
    tokens = transcriber.vocabulary.encode("ab c")
    lattice = log_lattice(transcriber, samples, tokens)
    one = transcriber.run.model.decoder.one_label_per_frame
    score, path = best_path(lattice, tokens, one)
    seconds = SAMPLES / 16000
    starts = [frame * FRAME for frame in path]
    assert [token.start for token in found.tokens] == pytest.approx(starts)
    assert [token.end for token in found.tokens] == pytest.approx([*starts[1:], seconds])
    assert [token.text for token in found.tokens] == ["▁", "a", "b", "▁", "c"]
    expected = [np.exp(lattice[frame, u, tokens[u]]) for u, frame in enumerate(path)]
    assert [token.confidence for token in found.tokens] == pytest.approx(expected, rel=1e-3)
    assert found.score == pytest.approx(score, rel=1e-4)
    assert found.seconds == pytest.approx(seconds)
    assert [word.text for word in found.words] == ["ab", "c"]
    assert [word.start for word in found.words] == pytest.approx([starts[1], starts[4]])
    assert [word.end for word in found.words] == pytest.approx([starts[3], seconds])


def test_bad_input_is_one_line(transcriber, samples):
    aligner = Aligner(transcriber)
    with pytest.raises(UserError, match="the text is empty"):
        aligner.align(samples, "  ")
    with pytest.raises(UserError, match="vocabulary has no 'x', 'z'"):
        aligner.align(samples, "a zx")
    with pytest.raises(UserError, match="unknown target language 'xx'"):
        aligner.align(samples, "a", target_language="xx")
    with pytest.raises(UserError, match="too short to hold a frame"):
        aligner.align(samples[:100], "a")
    if transcriber.run.model.decoder.one_label_per_frame:
        with pytest.raises(UserError, match="12 tokens and the recording 8 frames"):
            aligner.align(samples, "abc abc abc")


def test_text_is_taken_as_it_is_or_else_folded(vocabulary):
    assert tokens_of(vocabulary, "d'a") == vocabulary.encode("d'a")
    assert tokens_of(vocabulary, "Cab, BA!") == vocabulary.encode("cab ba")
    with pytest.raises(UserError, match="nothing is left"):
        tokens_of(vocabulary, "?!")


def test_words_of_pieces_and_of_letters():
    def units(*texts):
        return [
            Unit(text=text, start=float(i), end=i + 1.0, confidence=0.25)
            for i, text in enumerate(texts)
        ]

    def spans(words):
        return [(word.text, word.start, word.end) for word in words]

    assert spans(words_of(units("▁he", "llo", "▁you"))) == [("hello", 0, 2), ("you", 2, 3)]
    letters = words_of(units("▁", "a", "b", "▁", "c"))
    assert spans(letters) == [("ab", 1, 3), ("c", 4, 5)]
    assert letters[0].confidence == pytest.approx(0.25)
    assert spans(words_of(units("a", "▁"))) == [("a", 0, 1)]
