"""Audio to hypotheses through a whole model: what the searches are given, where arrays lie."""

from __future__ import annotations

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from maestro_jax.decoding.fusion import Fusion
from maestro_jax.decoding.ngram import NgramLm
from maestro_jax.decoding.speech import decode_speech
from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.losses.transducer_arcs import log_probabilities
from maestro_jax.modules.duration import DurationModel
from maestro_jax.modules.frontend import ConvSubsampling, LogMelFrontend
from maestro_jax.modules.maestro import Maestro
from maestro_jax.modules.quantizer import GumbelQuantizer
from maestro_jax.modules.refiner import Refiner
from maestro_jax.modules.resampler import Resampler
from maestro_jax.modules.shared_encoder import SharedEncoder
from maestro_jax.modules.speech_encoder import SpeechEncoder
from maestro_jax.modules.text_encoder import TextEncoder
from maestro_jax.modules.transducer import TransducerDecoder

VOCAB, SAMPLES, MAX_LABELS = 12, 16000, 24


def maestro(**decoder):
    def stack():
        return ConformerStack(layers=1, features=16, heads=2, hidden=32)

    return Maestro(
        frontend=LogMelFrontend(),
        subsampling=ConvSubsampling(channels=(8, 8)),
        quantizer=GumbelQuantizer(codes=8, code_features=16),
        speech_encoder=SpeechEncoder(stack=stack(), code_features=16),
        text_encoder=TextEncoder(
            vocab_size=VOCAB, features=16, conv_layers=1, layers=1, heads=2, hidden=32
        ),
        duration_model=DurationModel(blocks=1, heads=2),
        resampler=Resampler(),
        refiner=Refiner(features=16, layers=1, heads=2, hidden=32),
        shared_encoder=SharedEncoder(stack=stack(), codes=8),
        decoder=TransducerDecoder(
            vocab_size=VOCAB,
            embedding_features=16,
            units=16,
            layers=2,
            joint_features=16,
            **decoder,
        ),
    )


@pytest.fixture(scope="module")
def params():
    """Random weights, larger at the end, so that hypotheses have something to say."""
    model = maestro()
    init = jax.jit(lambda key: model.init({"params": key}, {}))
    params = nn.unbox(init(jax.random.key(0)))["params"]
    scale = {"output": 6.0, "frame_projection": 4.0, "label_projection": 3.0}
    for name, factor in scale.items():
        layer = params["decoder"][name]
        params["decoder"][name] = layer | {"kernel": factor * layer["kernel"]}
    bias = params["decoder"]["output"]["bias"]
    params["decoder"]["output"]["bias"] = bias.at[0].set(2.0)
    return params


def noise(batch, seed=1):
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(100, 6000, size=(batch, SAMPLES // 800)), 800, axis=1)
    return (rng.normal(size=(batch, SAMPLES)) * loudness).astype(np.int16)


LENGTHS = np.asarray([SAMPLES, 0, 9000, 12345])


DECODERS = {
    "softmax": {},
    "hat, one label a frame": {"hat": True, "one_label_per_frame": True},
}


@functools.cache
def decoder(name="softmax", **options):
    function = functools.partial(
        decode_speech, maestro(**DECODERS[name]), max_labels=MAX_LABELS, **options
    )
    return jax.jit(function)


def decode(params, audio, lengths, name="softmax", **options):
    lengths = jnp.asarray(lengths, jnp.int32)
    return decoder(name, **options)(params, jnp.asarray(audio), lengths)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "beam_size"), [("softmax", 1), ("softmax", 4), ("hat, one label a frame", 4)]
)
def test_token_scores_are_arcs_of_the_model_s_own_lattice(params, name, beam_size):
    """Frames, labels and the factorisation fit: the arcs are found where the hypothesis says."""
    model = maestro(**DECODERS[name])
    audio = noise(4)
    found = decode(params, audio, LENGTHS, name, beam_size=beam_size)
    assert found.tokens.shape == (4, beam_size, MAX_LABELS)
    call = functools.partial(model.apply, {"params": params})

    @jax.jit
    def lattice(tokens):
        features, mask = call(audio, LENGTHS, method="features")
        context = call(call(features, mask, method="encode_speech"), mask, method="encode_shared")
        frames = call(context, method="project_frames")
        labels = jnp.pad(tokens, ((0, 0), (1, 0)))
        outputs, _ = call(labels, call(4, method="decoder_state"), method="prediction_step")
        logits = call(frames[:, :, None], outputs[:, None], method="joint")
        return log_probabilities(logits, hat=model.decoder.hat), mask

    errors, of_a_wrong_arc = [], []
    for place in range(beam_size):
        scores, mask = lattice(found.tokens[:, place])
        for row in range(4):
            length = int(found.lengths[row, place])
            for u in range(length):
                t, token = int(found.frames[row, place, u]), int(found.tokens[row, place, u])
                assert mask[row, t]
                score = float(found.token_scores[row, place, u])
                errors.append(abs(score - float(scores[row, t, u, token])))
                near = t + 1 if t + 1 < scores.shape[1] else t - 1
                of_a_wrong_arc.append(abs(score - float(scores[row, near, u, token])))
            if model.decoder.one_label_per_frame:
                assert np.all(np.diff(found.frames[row, place, :length]) > 0)
    assert len(errors) > 10 * beam_size
    # Both are float32, and large weights let the rounding of a few frames grow to some 1e-4; the
    # arc of the next frame, the mistake that is nearest at hand, is further off by another order.
    assert np.median(errors) < 1e-5
    assert np.max(errors) < 1e-3
    assert np.min(of_a_wrong_arc) > 1e-2


@pytest.mark.parametrize("beam_size", [1, 4])
def test_batch_and_single_agree_to_the_token(params, beam_size):
    """Beside other rows and under more padding, an utterance is heard as it is alone."""
    audio = noise(4)
    options = {"beam_size": beam_size}
    whole = decode(params, audio, LENGTHS, **options)
    row, seen = 2, LENGTHS[2]
    alone = decode(params, audio[row : row + 1, :seen], [seen], **options)
    for name in ("tokens", "lengths", "frames", "truncated"):
        got, want = getattr(whole, name)[row], getattr(alone, name)[0]
        np.testing.assert_array_equal(got, want, err_msg=name)
    np.testing.assert_allclose(whole.scores[row], alone.scores[0], atol=1e-3)
    assert int(whole.lengths[row, 0]) > 5
    assert float(whole.scores[1, 0]) == 0.0 and not np.any(whole.lengths[1])


def test_a_beam_finds_better_and_a_language_model_is_heard(params):
    audio = noise(4)
    greedy = decode(params, audio, LENGTHS, beam_size=1)
    lm = NgramLm.estimate([[5, 6, 5, 6, 5, 6]] * 50, vocab_size=VOCAB, order=2)
    beam = decode(params, audio, LENGTHS, beam_size=4)
    function = functools.partial(
        decode_speech,
        maestro(),
        max_labels=MAX_LABELS,
        beam_size=4,
        fusion=Fusion(lm=lm, weight=2.0),
    )
    lengths = jnp.asarray(LENGTHS, jnp.int32)
    fused = jax.jit(function)(params, jnp.asarray(audio), lengths)
    # Not row by row: a beam may lose the greedy path to four others that end worse.
    assert np.sum(beam.scores[:, 0]) > np.sum(greedy.scores[:, 0])

    def share(found):
        tokens = np.concatenate([found.tokens[row, 0, : found.lengths[row, 0]] for row in range(4)])
        return np.mean(np.isin(tokens, [5, 6]))

    assert share(fused) > share(beam) + 0.2
    np.testing.assert_array_equal(beam.fused_scores, beam.scores)
    assert np.all(fused.fused_scores[0] < fused.scores[0])


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (CPU) devices")
def test_a_split_batch_stays_split(params, beam_size=4):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    function = functools.partial(
        decode_speech, maestro(), max_labels=MAX_LABELS, beam_size=beam_size
    )
    audio, lengths = noise(8), np.asarray([16000, 0, 800, 4000] * 2, np.int32)
    with jax.set_mesh(mesh), nn.logical_axis_rules((("batch", "data"),)):
        compiled = (
            jax.jit(function, in_shardings=(whole, rows, rows))
            .lower(params, audio, lengths)
            .compile()
        )
        found = compiled(jax.device_put(params, whole), *jax.device_put((audio, lengths), rows))
    moved = [
        line
        for line in compiled.as_text().splitlines()
        if re.search(r" (all-gather|all-to-all|collective-permute)(-start)?\(", line)
    ]
    assert not moved, moved[0]
    alone = decode(params, audio, lengths, beam_size=beam_size)
    for leaf in found:
        assert leaf.sharding.is_equivalent_to(rows, leaf.ndim)
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_array_equal(found.frames, alone.frames)
