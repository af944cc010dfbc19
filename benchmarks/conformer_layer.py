"""Times a Conformer layer, forward and with all gradients, against transformers' on CPU PyTorch.

Both layers are macaron Conformers: half a feed-forward layer, self-attention, convolution with a
gate and a kernel of 5, half a feed-forward layer, normalisation; the same sizes, float32, training
mode without dropout, batches with masked padding. They differ in two ways: ours has a group
normalisation over valid frames after the depthwise convolution, the peer a batch normalisation over
all frames; and our projections in the convolution have biases. The position encodings are

- `none`: ours as shipped, where sinusoids are added before the first layer; the peer without any;
- `rotary`: both;
- `relative`: the peer's default (Transformer-XL's), against ours with none.

The peer attends through PyTorch's `scaled_dot_product_attention`, its default.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rows import Bar, Row, Table, size_text
from timing import Contender, ContenderError, Timing, progress, take_turns
from torchaudio_beside_cpu_torch import REMEDY, load_torchaudio

SIZES = ((2, 750, 512, 8, 2048), (2, 750, 1024, 8, 4096))
"""Batch, frames, features, heads, hidden: the layers of base.gin and xl.gin on 30 s of speech."""
LETTERS = "BTDHF"
WORK = ("forward", "forward and backward")
POSITIONS = ("relative", "rotary", "none")
KERNEL_SIZE = 5
BAR = Bar(limit=1.5)
"""Against the peer's default. With equal positions, both layers are mostly the same products."""


def measure(
    sizes: tuple[tuple[int, ...], ...], repeats: int, cores: int, peers_python: str
) -> Table:
    """Compares ours and the peer with all position encodings, and with a large matrix product."""
    rows: list[Row] = []
    missing = ""
    for size in sizes:
        for work in WORK:
            progress(f"Conformer layer, {size_text(size, LETTERS)}, {work}")
            with contextlib.ExitStack() as stack:
                contenders, missing = _start(stack, size, work, cores, peers_python)
                times = take_turns(contenders, repeats)
                product = contenders["product"].report["flops"]
            rows += _rows(times, size, work, product / times["product"].best, cores)
    remarks = (
        "Shares are of the speed of one matrix product of 2048, measured in the same turns, and of "
        "the products of a layer without positions.",
        *([f"transformers was not measured: {missing}"] if missing else []),
    )
    return Table(f"Conformer layer, {cores} cores, float32", "times faster", tuple(rows), remarks)


def _start(
    stack: contextlib.ExitStack, size: tuple[int, ...], work: str, cores: int, peers_python: str
) -> tuple[dict[str, Contender], str]:
    def start(module: str, job: Mapping[str, Any], **where: Any) -> Contender:
        return stack.enter_context(Contender(module, job, cores=cores, **where))

    contenders = {"product": start("matrix_product", {"size": 2048, "dtype": "float32"})}
    job = {"size": size, "work": work}
    for positions in ("none", "rotary"):
        mine = job | {"who": "ours", "positions": positions}
        contenders[f"ours {positions}"] = start("conformer_layer", mine)
    for positions in POSITIONS:
        theirs = job | {"who": "transformers", "positions": positions}
        try:
            contenders[f"peer {positions}"] = start("conformer_layer", theirs, python=peers_python)
        except ContenderError as why:
            if not why.missing:
                raise
            progress(f"  transformers is left out: {why}")
            return contenders, str(why)
    return contenders, ""


def _rows(
    times: Mapping[str, Timing], size: tuple[int, ...], work: str, speed: float, cores: int
) -> list[Row]:
    ideal = layer_flops(size, backward=work != WORK[0]) / speed
    rows = []
    for positions in POSITIONS:
        ours = times["ours rotary" if positions == "rotary" else "ours none"]
        peer = times.get(f"peer {positions}")
        if peer is None and positions == "relative":
            continue
        note = f"{ideal / ours.best:.0%}"
        if peer is not None:
            note += (
                f" and {ideal / peer.best:.0%} of a matrix product's speed; medians "
                f"{1000 * ours.median:.3g} and {1000 * peer.median:.3g} ms"
            )
        else:
            note += " of a matrix product's speed"
        rows.append(
            Row(
                what=work,
                size=f"{size_text(size, LETTERS)}, {positions}",
                ours=ours.best,
                unit="s",
                peer_name="" if peer is None else "transformers",
                peer=None if peer is None else peer.best,
                ratio=None if peer is None else peer.best / ours.best,
                bar=BAR if positions == "relative" and cores == 2 else None,
                note=note,
            )
        )
    return rows


def layer_flops(size: tuple[int, ...], *, backward: bool) -> float:
    """Counts FLOPs of the matrix products of a layer without positions, 2 per multiply-add.

    Args:
        size: As in `SIZES`.
        backward: With the gradients of parameters and input: three times as many.
    """
    batch, frames, features, _, hidden = size
    feed_forward = 2 * 2 * features * hidden
    attention = 4 * features**2 + 2 * frames * features
    convolution = 3 * features**2
    forward = 2.0 * batch * frames * (feed_forward + attention + convolution)
    return 3 * forward if backward else forward


def prepare(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], object]]:
    """Compiles one side, `ours` or `transformers`, and runs it once."""
    batch, frames, features, _, _ = job["size"]
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, batch, frames, features), np.float32)
    lengths = np.linspace(frames, 0.6 * frames, batch).astype(np.int32)
    mask = np.arange(frames) < lengths[:, None]
    start = time.perf_counter()
    run = (_ours if job["who"] == "ours" else _transformers)(job, x, cotangent, mask)
    run()
    return {"compile_seconds": time.perf_counter() - start}, run


def _ours(
    job: dict[str, Any], x: np.ndarray, cotangent: np.ndarray, mask: np.ndarray
) -> Callable[[], object]:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from maestro_jax.layers.conformer import ConformerBlock

    _, _, _, heads, hidden = job["size"]
    rotary = job["positions"] == "rotary"
    block = ConformerBlock(heads, hidden, kernel_size=KERNEL_SIZE, rotary=rotary)
    inputs = jnp.asarray(x), jnp.asarray(cotangent), jnp.asarray(mask)
    params = nn.unbox(jax.jit(block.init)(jax.random.key(0), inputs[0], inputs[2]))

    @jax.jit
    def forward(params: Any, x: jax.Array, cotangent: jax.Array, mask: jax.Array) -> Any:
        return block.apply(params, x, mask)

    @jax.jit
    def both(params: Any, x: jax.Array, cotangent: jax.Array, mask: jax.Array) -> Any:
        y, pullback = jax.vjp(lambda params, x: block.apply(params, x, mask), params, x)
        return y, pullback(cotangent)

    step = forward if job["work"] == WORK[0] else both
    return lambda: jax.block_until_ready(step(params, *inputs))


def _transformers(
    job: dict[str, Any], x: np.ndarray, cotangent: np.ndarray, mask: np.ndarray
) -> Callable[[], object]:
    try:
        import torch

        # transformers imports it wherever a package of that name is installed.
        load_torchaudio()
        from transformers import Wav2Vec2ConformerConfig
        from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as peer
    except ImportError as error:
        raise ImportError(f"PyTorch or transformers is missing; {REMEDY}") from error

    torch.set_num_threads(job["cores"])
    _, frames, features, heads, hidden = job["size"]
    positions = None if job["positions"] == "none" else job["positions"]
    config = Wav2Vec2ConformerConfig(
        hidden_size=features,
        num_attention_heads=heads,
        intermediate_size=hidden,
        hidden_act="swish",
        conv_depthwise_kernel_size=KERNEL_SIZE,
        position_embeddings_type=positions,
        attn_implementation="sdpa",
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        conformer_conv_dropout=0.0,
    )
    layer = peer.Wav2Vec2ConformerEncoderLayer(config).train()
    inputs, gradient = torch.from_numpy(x), torch.from_numpy(cotangent)
    # The encoder makes it once for all layers.
    seen = torch.from_numpy(mask)[:, None, None, :].expand(-1, 1, frames, -1)
    embedded = None
    if positions == "relative":
        embedded = peer.Wav2Vec2ConformerRelPositionalEmbedding(config)(inputs)
    elif positions == "rotary":
        embedded = peer.Wav2Vec2ConformerRotaryPositionalEmbedding(config)(inputs)

    def apply() -> Any:
        return layer(inputs, attention_mask=seen, relative_position_embeddings=embedded)

    def forward() -> object:
        with torch.inference_mode():
            return apply()

    def both() -> object:
        inputs.grad = None
        layer.zero_grad(set_to_none=True)
        y = apply()
        y.backward(gradient)
        return y

    if job["work"] == WORK[0]:
        return forward
    inputs.requires_grad_(True)
    return both
