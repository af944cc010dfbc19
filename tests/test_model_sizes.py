"""Parameters of the shipped models by module, against arithmetic from the architecture alone."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import pytest

from maestro_jax.gin_utils import gin_config
from maestro_jax.training.parameter_trees import parameters_by_module, unbox


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What the paper (or the file's head) says of a model; defaults are the paper's."""

    vocab: int = 256
    channels: tuple[int, int] = (128, 32)
    normalized_features: bool = False
    model: int = 1024
    feed_forward: int = 4096
    layers: tuple[int, int] = (6, 18)
    kernel: int = 5
    codes: int = 1024
    code: int = 1024
    text: int = 512
    text_feed_forward: int = 2048
    text_layers: int = 6
    text_heads: int = 8
    source_languages: int = 0
    target_languages: int = 64
    refiner_feed_forward: int = 2048
    label: int = 640
    lstm: tuple[int, ...] = (1280, 1280)
    joint: int = 640


SIZES = {
    "xl": Size(),
    "base": Size(
        model=512,
        feed_forward=2048,
        layers=(3, 9),
        code=512,
        text=384,
        text_feed_forward=1536,
        refiner_feed_forward=1536,
        label=512,
        lstm=(640,),
        joint=512,
    ),
    "tiny": Size(
        vocab=64,
        channels=(32, 32),
        normalized_features=True,
        model=128,
        feed_forward=384,
        layers=(2, 2),
        codes=64,
        code=64,
        text=128,
        text_feed_forward=256,
        text_layers=2,
        refiner_feed_forward=256,
        label=128,
        lstm=(160,),
        joint=128,
    ),
}


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(features: int) -> int:
    return 2 * features


def feed_forward(features: int, hidden: int) -> int:
    return norm(features) + linear(features, hidden) + linear(hidden, features)


def attention(features: int) -> int:
    return norm(features) + 4 * linear(features, features)


def conformer(features: int, hidden: int, kernel: int) -> int:
    # Into the gate twice the width; a kernel a channel, normalised; out; one more norm at the end.
    convolution = (
        norm(features)
        + linear(features, 2 * features)
        + kernel * features
        + norm(features)
        + linear(features, features)
    )
    whole = 2 * feed_forward(features, hidden) + attention(features) + convolution
    return whole + norm(features)


def lightweight_block(features: int, kernel: int, hidden: int = 0) -> int:
    # As wide a gate as in the Conformer, but the kernel is one of 8 heads and not of a channel.
    mixing = norm(features) + linear(features, 2 * features) + 8 * kernel
    mixing += linear(features, features)
    return mixing + (feed_forward(features, hidden) if hidden else 0)


def lstm(inputs: int, units: int) -> int:
    return linear(inputs, 4 * units) + units * 4 * units


def expected(size: Size) -> dict[str, int]:
    """The parameters of each module of Figure 1."""
    first, second = size.channels
    subsampled = 80 // 4 * second
    text, block = size.text, conformer(size.model, size.feed_forward, size.kernel)
    transformer = attention(text) + feed_forward(text, size.text_feed_forward)
    widths = (size.label, *size.lstm)
    return {
        "subsampling": linear(3 * 3 * 1, first)
        + linear(3 * 3 * first, second)
        + (norm(subsampled) if size.normalized_features else 0),
        "quantizer": linear(subsampled, size.codes) + size.codes * size.code,
        "speech_encoder": linear(subsampled, size.model)
        + size.layers[0] * block
        + linear(size.model, size.code),
        "text_encoder": size.vocab * text
        + size.source_languages * text
        + 3 * (linear(5 * text, text) + norm(text))
        + size.text_layers * transformer
        + norm(text),
        "duration_model": 4 * lightweight_block(text, 3) + norm(text) + 2 * linear(text, 1),
        "resampler": linear(2 * text + 1, text),
        "refiner": 2 * lightweight_block(text, 17, size.refiner_feed_forward)
        + norm(text)
        + linear(text, size.model)
        + norm(size.model),
        "shared_encoder": size.layers[1] * block
        + linear(size.model, size.codes)
        + size.target_languages * size.model,
        "decoder": size.vocab * size.label
        + sum(lstm(inputs, units) for inputs, units in itertools.pairwise(widths))
        + linear(size.model, size.joint)
        + size.lstm[-1] * size.joint
        + linear(size.joint, size.vocab),
    }


@pytest.mark.parametrize("name", SIZES)
def test_parameters_by_module(name: str) -> None:
    files = ["runs/pretrain.gin", f"models/{name}.gin", "objectives/maestro.gin"]
    run = gin_config.parse_and_build([*files, "data/minivox_small.gin"], {"STEPS": "1000"})
    # Shapes alone: the large model is never allocated.
    params = jax.eval_shape(
        lambda: unbox(run.objective.init(run.model, jax.random.key(0), run.batch_shapes()))
    )
    assert parameters_by_module(params) == expected(SIZES[name])


def test_the_large_model_is_the_paper_s() -> None:
    counts = expected(SIZES["xl"])
    layer = conformer(1024, 4096, 5)
    # 24 layers of about 24.1M are about 579M, and with all else 0.6B (the paper's table 1).
    assert layer == pytest.approx(24.1e6, rel=0.003)
    assert 24 * layer == pytest.approx(579e6, rel=0.003)
    assert round(sum(counts.values()) / 1e9, 1) == 0.6
    conformers = counts["speech_encoder"] + counts["shared_encoder"]
    assert conformers / sum(counts.values()) > 0.9


def test_base_has_about_a_hundred_million() -> None:
    assert round(sum(expected(SIZES["base"]).values()), -7) == 100_000_000
