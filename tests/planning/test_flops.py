"""FLOPs counted from jaxprs against formulas and brute force, and the paper's model by hand."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from maestro_jax.flops import OTHER, count_flops
from maestro_jax.gin_utils import gin_config
from maestro_jax.layers.conformer import ConformerBlock
from maestro_jax.layers.lstm import LstmLayer
from maestro_jax.planning.analytic import step_flops


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def scalar(function):
    """A loss of a function's output that no gradient simplifies."""
    return lambda *args: jnp.sum(jnp.sin(function(*args)))


def test_a_dense_layer() -> None:
    x, w = shape(7, 5), shape(5, 3)
    assert count_flops(jnp.dot, x, w).model == 2 * 7 * 5 * 3
    both = count_flops(jax.grad(scalar(jnp.dot), (0, 1)), x, w)
    assert (both.forward, both.backward, both.recomputed) == (210, 420, 0)
    # Nobody asks for the gradient of the first layer's input.
    assert count_flops(jax.grad(scalar(jnp.dot), 1), x, w).backward == 210


def test_batched_products_and_what_they_move() -> None:
    count = count_flops(
        lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), shape(2, 6, 4, 8), shape(2, 9, 4, 8)
    )
    assert count.model == 2 * 2 * 4 * 6 * 9 * 8
    assert count.bytes == 4 * (2 * 6 * 4 * 8 + 2 * 9 * 4 * 8 + 2 * 4 * 6 * 9)


def test_what_reaches_no_output_is_no_work() -> None:
    def function(x):
        jnp.dot(x, x.T)
        return x + 1

    assert count_flops(function, shape(4, 4)).model == 0


def convolution_by_hand(length, width, stride, before, after, dilation):
    """Products of a kernel's element with an element of the input, one by one."""
    found, place = 0, -before
    while place + (width - 1) * dilation < length + after:
        found += sum(0 <= place + offset * dilation < length for offset in range(width))
        place += stride
    return found


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    list(itertools.product([1, 2], [(0, 0), (1, 1), (2, 0)], [1, 2])),
)
def test_a_convolution_and_its_gradient(stride, padding, dilation) -> None:
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            (padding, (1, 1)),
            rhs_dilation=(dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, kernel = shape(3, 11, 8, 4), shape(3, 3, 4, 6)
    pairs = convolution_by_hand(11, 3, stride, *padding, dilation)
    pairs *= convolution_by_hand(8, 3, stride, 1, 1, 1)
    assert count_flops(convolve, x, kernel).model == 2 * 3 * 4 * 6 * pairs
    both = count_flops(jax.grad(scalar(convolve), (0, 1)), x, kernel)
    assert both.backward == 2 * both.forward == 2 * 2 * 3 * 4 * 6 * pairs


def test_a_grouped_convolution() -> None:
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1,),
        padding="VALID",
        feature_group_count=2,
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    x, kernel = shape(2, 10, 8), shape(3, 4, 6)
    assert count_flops(convolve, x, kernel).model == 2 * 2 * 8 * 3 * 4 * 6
    both = count_flops(jax.grad(scalar(convolve), (0, 1)), x, kernel)
    assert both.backward == 2 * both.forward


def test_loops() -> None:
    w = shape(4, 4)

    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=10)[0]

    assert count_flops(scanned, shape(2, 4), w).model == 10 * 2 * 2 * 4 * 4
    both = count_flops(jax.grad(scalar(scanned), 1), shape(2, 4), w)
    # The gradient of the first turn's input is computed with the others.
    assert both.backward == 2 * both.forward

    def counted(x, w):
        return jax.lax.fori_loop(0, 10, lambda _, x: x @ w, x)

    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ w, x)

    assert count_flops(counted, shape(2, 4), w).model == 10 * 2 * 2 * 4 * 4
    # A loop up to a number that is only known when it runs.
    unknown = count_flops(
        lambda x, w, n: jax.lax.fori_loop(0, n, lambda _, x: x @ w, x),
        shape(2, 4), w, shape(dtype=jnp.int32),
    )  # fmt: skip
    assert unknown.model == 2 * 2 * 4 * 4
    assert unknown.loops_of_unknown_length == (OTHER,)
    assert count_flops(until, shape(2, 4), w).loops_of_unknown_length == (OTHER,)
    assert count_flops(counted, shape(2, 4), w).loops_of_unknown_length == ()


def test_a_branch_counts_as_the_dearest() -> None:
    def function(p, x):
        return jax.lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert count_flops(function, shape(dtype=bool), shape(4, 4)).model == 2 * 2 * 4**3


def test_what_checkpointing_computes_twice_is_told_apart() -> None:
    def layers(x, w):
        return jax.lax.scan(
            jax.checkpoint(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w), None)), x, w
        )[0]

    x, w = shape(2, 4), shape(6, 4, 4)
    count = count_flops(jax.grad(scalar(layers), (0, 1)), x, w)
    one = 6 * 2 * 2 * 4 * 4
    assert count.forward == 2 * one
    assert count.model == 3 * 2 * one
    # Both products again: each is followed by a tanh whose gradient needs it.
    assert count.recomputed == 2 * one
    assert count.hardware == 8 * one


def conformer(frames: int, features: int, hidden: int) -> float:
    """FLOPs a frame of a Conformer layer (Gulati et al., 2020) but its depthwise convolution."""
    feed_forward = 2 * 2 * features * hidden
    attention = 4 * 2 * features**2 + 2 * 2 * frames * features
    convolution = 2 * 2 * features**2 + 2 * features**2
    return 2 * feed_forward + attention + convolution


def test_a_conformer_layer() -> None:
    block = ConformerBlock(heads=4, hidden=48, kernel_size=5, groups=4)
    x, mask = shape(3, 20, 16), shape(3, 20, dtype=jnp.bool_)
    params = jax.eval_shape(block.init, jax.random.key(0), x, mask)
    count = count_flops(block.apply, params, x, mask)
    assert count.model == 3 * 20 * conformer(20, 16, 48)
    parts = count.by_part(1)
    assert parts["feed_forward_in"] == parts["feed_forward_out"] == 3 * 20 * 4 * 16 * 48
    grad = jax.grad(lambda *args: jnp.sum(jnp.sin(block.apply(*args))), (0, 1))
    both = count_flops(grad, params, x, mask)
    assert (both.forward, both.backward) == (count.model, 2 * count.model)
    assert {name: flops / 3 for name, flops in both.by_part(1).items()} == parts


def test_an_lstm() -> None:
    layer = LstmLayer(units=12)
    x = shape(3, 7, 5)
    state = (shape(3, 12), shape(3, 12))
    params = jax.eval_shape(layer.init, jax.random.key(0), x, state)
    # Four gates of the input and of the state (Hochreiter and Schmidhuber; Gers et al.).
    by_hand = 3 * 7 * (2 * 5 * 4 * 12 + 2 * 12 * 4 * 12)
    assert count_flops(layer.apply, params, x, state).model == by_hand


def paper_step(
    *,
    speech: int,
    text: int,
    paired: int,
    seconds: float,
    tokens: int,
    max_text_frames: int,
    vocabulary: int,
) -> dict[str, float]:
    """Model FLOPs of a MAESTRO step by part, from the sizes that the paper gives and no code.

    Padding is computed like anything else. A gradient costs twice the pass forward, everywhere but
    at the first convolution and where the places of frames enter: their inputs are data.
    """
    model, hidden, text_model, text_hidden = 1024, 4096, 512, 2048
    joint, lstm, label = 640, 1280, 640
    mel = round(seconds * 100)
    frames = mel // 4
    spoken, written = speech + paired, text + paired

    # Two convolutions of 3x3 and stride 2 over 80 mel bins, 128 and 32 filters.
    first = 2 * 9 * (mel // 2) * 40 * 128
    second = 2 * 9 * 128 * frames * 20 * 32
    project = frames * 2 * (20 * 32) * model
    block = frames * conformer(frames, model, hidden)
    short_block = max_text_frames * conformer(max_text_frames, model, hidden)

    def decoder(length: int) -> float:
        """Prediction network over the labels and a start, projections, logits of every node."""
        prediction = (tokens + 1) * 2 * 4 * lstm * (label + lstm + lstm + lstm)
        projections = length * 2 * model * joint + (tokens + 1) * 2 * lstm * joint
        return prediction + projections + length * (tokens + 1) * 2 * joint * vocabulary

    text_layer = 2 * 2 * text_model * text_hidden + 4 * 2 * text_model**2
    text_layer += 2 * 2 * tokens * text_model
    text_encoder = tokens * (3 * 5 * 2 * text_model**2 + 6 * text_layer)
    # Each block of light convolutions has a gate twice as wide and a way out.
    light = 3 * 2 * text_model**2
    durations = tokens * 4 * light
    refiner = 2 * (light + 2 * 2 * text_model * text_hidden) + 2 * text_model * model
    places = 2 * (2 * text_model + 1) * text_model

    def aligned(flops: float) -> float:
        """Speech that is transcribed runs once more, forward alone, to be aligned."""
        return paired * flops

    return {
        "subsampling": spoken * (2 * first + 3 * second) + aligned(first + second),
        "speech_encoder": (3 * spoken + paired) * (project + 6 * block)
        + 3 * speech * frames * 2 * model**2,
        "shared_encoder": (3 * spoken + paired) * 18 * block
        + 3 * text * 18 * short_block
        + 3 * speech * frames * 2 * model**2,
        # Codes of 1024 entries and features, from the features before the projection.
        "quantizer": 3 * speech * frames * 2 * (640 * 1024 + 1024 * 1024),
        "decoder": (3 * paired + paired) * decoder(frames) + 3 * text * decoder(max_text_frames),
        # Averaged weights read texts once more to predict their durations.
        "text_encoder": (3 * written + written) * text_encoder,
        "duration_model": (3 * paired + written) * durations,
        "text_at_frames": (text * max_text_frames + paired * frames) * (2 * places + 3 * refiner),
        # Each frame's context with the codes of all others.
        "contrastive": 3 * speech * frames * frames * 2 * 1024,
    }


BAR = {"SPEECH_BATCH": "1024", "TEXT_BATCH": "1024", "PAIRED_BATCH": "256"}


@pytest.mark.extended
def test_the_papers_model() -> None:
    """24 layers of 1024, 1024 utterances of 30 seconds, 1024 texts, 256 pairs."""
    sizes = {"VOCAB_SIZE": "4096", "TOKENS": "256", "MAX_TEXT_FRAMES": "400"}
    bindings = {"AUDIO_SAMPLES": str(30 * 16000), **sizes, **BAR}
    run = gin_config.parse_and_build(["runs/paper_voxpopuli.gin"], bindings)
    count = step_flops(run.model, run.objective, run.optimizer, run.batch_shapes())
    by_hand = paper_step(
        speech=1024,
        text=1024,
        paired=256,
        seconds=30,
        tokens=256,
        max_text_frames=run.objective.max_text_frames,
        vocabulary=4096,
    )
    assert count.model == pytest.approx(sum(by_hand.values()), rel=0.02)
    parts = count.by_part(1)
    parts["text_at_frames"] = parts["resampler"] + parts["refiner"]
    for name in by_hand.keys() & parts.keys():
        assert parts[name] == pytest.approx(by_hand[name], rel=0.02), name
    assert count.loops_of_unknown_length == ()
    # Checkpointing runs nearly all of a layer once more, the joint's gradient its logits.
    assert 0.8 * count.forward < count.recomputed < count.forward


@pytest.mark.slow
def test_streams_add_up_to_the_step() -> None:
    files = ["runs/pretrain.gin", "models/tiny.gin", "objectives/maestro.gin"]
    # With room for 400 frames. In a step, the texts of pairs pass the duration model as well,
    # joined with those of other texts: the shorter the texts, the larger the share of that.
    settings = {"STEPS": "1", "MAX_TEXT_FRAMES": "400", "VOCAB_SIZE": "64"}
    run = gin_config.parse_and_build([*files, "data/minivox_tiny.gin"], settings)
    shapes = run.batch_shapes()

    def flops(*streams: str) -> float:
        batch = {name: shapes[name] for name in streams}
        return step_flops(run.model, run.objective, run.optimizer, batch).model

    alone = {name: flops(name) for name in run.used_streams}
    assert sum(alone.values()) == pytest.approx(flops(*run.used_streams), rel=0.02)
    # Paired speech has the losses of speech and of text: more per utterance than either.
    each = {name: alone[name] / run.streams[name].batch_size for name in ("paired", "speech")}
    assert each["paired"] > each["speech"]


def test_what_is_done_element_by_element() -> None:
    def function(x):
        with jax.named_scope("layer"):
            y = jnp.tanh(x) * x
        return y.T + 1.0

    count = count_flops(function, shape(8, 4))
    # Transposing moves numbers; a tanh, a product and a sum put 32 of them out each.
    assert count.elementwise_by_part == {"layer": 2 * 32 * 4, OTHER: 32 * 4}
    assert count.elementwise == 2 * 32 * 4


def test_turns_of_loops() -> None:
    def scanned(x):
        inner = lambda x, _: (jnp.sin(x), None)  # noqa: E731
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=7)[0], None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=5)[0]

    assert count_flops(scanned, shape(3)).turns == 5 + 5 * 7
