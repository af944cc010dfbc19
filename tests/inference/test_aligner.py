"""Alignment of a recording against every path through the model's own lattice."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.audio.reading import to_int16
from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config
from maestro_jax.inference.aligner import Aligner, encode_transcript
from maestro_jax.inference.timed_words import AlignedToken, aligned_words
from maestro_jax.losses.transducer_arcs import log_probabilities
from maestro_jax.text.languages import LanguageTable
from maestro_jax.text.vocabularies import train_sentencepiece
from maestro_jax.training.partitioning import Partitioning

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
    run = gin_config.parse_and_build([*files, "data/minivox_tiny.gin"], bindings)
    return dataclasses.replace(run, partitioning=TwoDevices())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoDevices(Partitioning):
    """Rows beyond the recording's own, as on a machine with devices, and quickly compiled."""

    def mesh(self, devices=None):
        return super().mesh(jax.devices()[:2])


@pytest.fixture(scope="module", params=[False, True], ids=["many", "one_label_per_frame"])
def transcriber(request, vocabulary):
    """Stands where a loaded model would: the shipped tiny model, narrow, with random weights."""
    run = narrow_run(request.param)
    mesh = run.partitioning.mesh()
    rng = np.random.default_rng(10)
    # Larger than initial weights, so that frames differ and paths move.
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.8, leaf.shape), leaf.dtype),
        nn.unbox(jax.eval_shape(run.model.init, {"params": jax.random.key(0)}, {}))["params"],
    )
    return types.SimpleNamespace(
        run=run,
        params=params,
        vocabulary=vocabulary,
        decoder="transducer",
        languages=LanguageTable(),
        translates=False,
        samples=16_000,
        data_shards=mesh.shape["data"] * mesh.shape["fsdp"],
    )


@pytest.fixture(scope="module")
def aligner(transcriber):
    return Aligner(transcriber)


@pytest.fixture(scope="module")
def samples():
    """Five tones, one after the other: frames that differ."""
    time = np.arange(SAMPLES // 5) / 16_000
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in (300, 2500, 700, 5000, 1200)]
    return (0.2 * np.concatenate(tones)).astype(np.float32)


def log_lattice(transcriber, samples, tokens):
    """Log-probabilities [frames, labels + 1, vocab], step by step, without padding."""
    call = functools.partial(transcriber.run.model.apply, {"params": transcriber.params})

    @jax.jit
    def run(audio):
        features, mask = call(audio, jnp.asarray([len(samples)]), method="features")
        encoded = call(features, mask, method="encode_speech")
        frames = call(call(encoded, mask, method="encode_shared"), method="project_frames")
        labels = jnp.asarray([[0, *tokens]])
        predicted, _ = call(labels, call(1, method="decoder_state"), method="prediction_step")
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


def test_times_are_those_of_the_best_of_all_paths(transcriber, aligner, samples):
    found = aligner.align(samples, "ab c")
    tokens = transcriber.vocabulary.encode("ab c")
    lattice = log_lattice(transcriber, samples, tokens)
    one = transcriber.run.model.decoder.one_label_per_frame
    score, path = best_path(lattice, tokens, one)
    # Else every wrong answer might be right: a path that moves, and is not the only one.
    assert len(set(path)) > 2 and len(lattice) == 8
    seconds = SAMPLES / 16000
    starts = [frame * FRAME for frame in path]
    assert [token.start for token in found.tokens] == pytest.approx(starts)
    assert [token.end for token in found.tokens] == pytest.approx([*starts[1:], seconds])
    assert [token.text for token in found.tokens] == ["▁", "a", "b", "▁", "c"]
    expected = [np.exp(lattice[frame, u, tokens[u]]) for u, frame in enumerate(path)]
    assert [token.confidence for token in found.tokens] == pytest.approx(expected, rel=1e-2)
    assert found.score == pytest.approx(score, rel=1e-4)
    assert found.seconds == pytest.approx(seconds)
    assert [word.text for word in found.words] == ["ab", "c"]
    assert [word.start for word in found.words] == pytest.approx([starts[1], starts[4]])
    assert [word.end for word in found.words] == pytest.approx([starts[3], seconds])
    assert (found.text, found.frame_seconds) == ("ab c", FRAME)


def test_padding_changes_nothing_and_long_recordings_are_heard_whole(
    transcriber, aligner, samples, caplog
):
    repeated = np.tile(samples, 4)  # 1.3 s: beyond what the model was trained on, and 1 s
    with caplog.at_level(logging.WARNING):
        found = aligner.align(repeated, "ab c")
    assert "has 1.3 s, and the model was trained on 1.0 s" in caplog.text
    assert found.tokens[-1].end == found.seconds == pytest.approx(1.3)
    # The same weights over an exactly fitting array, scored along the path that was found.
    lattice = log_lattice(transcriber, repeated, tokens := transcriber.vocabulary.encode("ab c"))
    path = [round(token.start / FRAME) for token in found.tokens]
    assert len(lattice) > 25 and max(path) < len(lattice)
    expected = [lattice[frame, u, tokens[u]] for u, frame in enumerate(path)]
    assert [np.log(token.confidence) for token in found.tokens] == pytest.approx(expected, abs=2e-3)


def test_bad_input_is_one_line(transcriber, aligner, samples):
    with pytest.raises(UserError, match="the text is empty"):
        aligner.align(samples, "  ")
    with pytest.raises(UserError, match="vocabulary has no 'x', 'z'"):
        aligner.align(samples, "a zx")
    with pytest.raises(UserError, match="unknown language 'xx'; write a BCP 47 tag"):
        aligner.align(samples, "a", target_language="xx")
    with pytest.raises(UserError, match="unknown language 'xx'"):
        aligner.align(samples, "a", language="xx")
    for count in (0, 100):
        with pytest.raises(UserError, match="too short to hold a frame"):
            aligner.align(samples[:count], "a")
    if transcriber.run.model.decoder.one_label_per_frame:
        with pytest.raises(
            UserError, match="12 tokens, which need 12 frames, and the recording has 8"
        ):
            aligner.align(samples, "abc abc abc")
    else:
        assert len(aligner.align(samples, "abc abc abc").tokens) == 12


def test_an_attention_decoder_aligns_nothing(transcriber):
    attends = types.SimpleNamespace(**{**vars(transcriber), "decoder": "attention"})
    with pytest.raises(UserError, match="attention decoder has no alignment"):
        Aligner(attends)


def test_broken_weights_are_no_alignment(transcriber, aligner, samples, monkeypatch):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, transcriber.params)
    monkeypatch.setattr(transcriber, "params", broken)
    with pytest.raises(UserError, match="no path through the recording .*nan"):
        aligner.align(samples, "ab c")


def test_text_is_taken_as_it_is_or_else_folded(vocabulary, tmp_path):
    assert encode_transcript(vocabulary, "d'a") == vocabulary.encode("d'a")
    assert encode_transcript(vocabulary, "Cab, BA!") == vocabulary.encode("cab ba")
    with pytest.raises(UserError, match="nothing is left"):
        encode_transcript(vocabulary, "?!")
    # A vocabulary with capitals is no reason to fold them.
    cased = train_sentencepiece(["Ab, ba. Cab", "abc D'a"], tmp_path / "v.model", 24, "char")
    assert encode_transcript(cased, "Ab,  ba.") == cased.encode("Ab, ba.")
    with pytest.raises(UserError, match="vocabulary has no '§';"):
        encode_transcript(cased, "Ab § Cab")
    # Of words, those are named that it lacks: their letters are known.
    words = train_sentencepiece(["ab ba cab"] * 3, tmp_path / "w.model", 16, "word")
    assert encode_transcript(words, "cab ab") == words.encode("cab ab")
    with pytest.raises(UserError, match="vocabulary has no 'bab';"):
        encode_transcript(words, "cab bab")


def test_turkish_is_folded_as_turkish(tmp_path):
    turkish = train_sentencepiece(["ılık ılıca", "klc ılk"], tmp_path / "v.model", 16, "char")
    assert encode_transcript(turkish, "ILIK", "tr") == turkish.encode("ılık")
    with pytest.raises(UserError, match="vocabulary has no 'i';"):
        encode_transcript(turkish, "ILIK")


def timed(vocabulary, text, starts, end):
    """What `aligned_words` takes: tokens of a text with given starts."""
    ids = vocabulary.encode(text)
    tokens = [
        AlignedToken(text=piece, start=float(start), end=float(stop), confidence=0.25)
        for piece, start, stop in zip(
            vocabulary.pieces(ids), starts, [*starts[1:], end], strict=True
        )
    ]
    return vocabulary, ids, tokens


def spans(words):
    return [(word.text, word.start, word.end, word.first_token) for word in words]


def test_aligned_words_of_letters(vocabulary):
    # The mark between words stands alone: it ends a word, and silence follows it.
    words = aligned_words(*timed(vocabulary, "ab c", [0, 1, 2, 3, 4], 5))
    assert spans(words) == [("ab", 1, 3, 1), ("c", 4, 5, 4)]
    assert words[0].confidence == pytest.approx(0.25)
    # Unless it shares the word's only frame: the word then lasts.
    words = aligned_words(*timed(vocabulary, "a c", [1, 2, 2, 7], 9))
    assert spans(words) == [("a", 2, 7, 1), ("c", 7, 9, 3)]
    # Words that share a frame leave it to the last of them.
    words = aligned_words(*timed(vocabulary, "a c", [2, 2, 2, 2], 9))
    assert spans(words) == [("a", 2, 2, 1), ("c", 2, 9, 3)]


def test_aligned_words_of_pieces(tmp_path):
    pieces = train_sentencepiece(["hello you hello young"] * 9, tmp_path / "v.model", 18, "bpe")
    ids = pieces.encode("hello you young")
    texts = pieces.pieces(ids)
    assert texts[0].startswith("▁") and len(texts) < len("hello you young")
    starts = list(range(3, 3 + len(ids)))
    begins = [index for index, text in enumerate(texts) if text.startswith("▁")]
    words = aligned_words(*timed(pieces, "hello you young", starts, 99))
    assert spans(words) == [
        ("hello", 3, starts[begins[1]], 0),
        ("you", starts[begins[1]], starts[begins[2]], begins[1]),
        ("young", starts[begins[2]], 99, begins[2]),
    ]
