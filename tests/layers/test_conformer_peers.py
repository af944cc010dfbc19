"""Attention, Transformer and Conformer layers against PyTorch's and transformers', weights copied.

make peers && build/peers/bin/python -m pytest -m peers tests/layers/test_conformer_peers.py

Each comparison is in float32, of outputs and of the gradient with respect to the input, on a padded
batch; only frames that are no padding count.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.attention import SelfAttention
from maestro_jax.layers.conformer import ConformerBlock
from maestro_jax.layers.positions import rotate
from maestro_jax.modules.text_encoder import TransformerBlock

pytestmark = pytest.mark.peers

LOADER = Path(__file__).parents[2] / "benchmarks" / "torchaudio_beside_cpu_torch.py"
REMEDY = "the `peers` extra is not here: make peers"
FEATURES, HEADS, HIDDEN, FRAMES = 24, 4, 40, 11
LENGTHS = (11, 6, 2)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(len(LENGTHS), FRAMES, FEATURES)).astype(np.float32)
MASK = np.arange(FRAMES) < np.array(LENGTHS)[:, None]
# The scalar that is differentiated: a weighted sum of the valid frames.
WEIGHTS = RNG.normal(size=X.shape).astype(np.float32) * MASK[:, :, None]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason=REMEDY)


@pytest.fixture(scope="module")
def transformers(torch: Any) -> Any:
    """transformers, with torchaudio loaded in the way that it does not know."""
    spec = importlib.util.spec_from_file_location("torchaudio_beside_cpu_torch", LOADER)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        loader.load_torchaudio()
    except ImportError as error:
        pytest.skip(f"the `peers` extra is not here: {error}")
    return pytest.importorskip("transformers", reason=REMEDY)


def drawn(torch: Any, layer: Any) -> Any:
    """The layer with random weights, so that no bias is zero and no scale one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


def linear(layer: Any) -> dict[str, np.ndarray]:
    return {"kernel": array(layer.weight).T, "bias": array(layer.bias)}


def norm(layer: Any) -> dict[str, np.ndarray]:
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def heads_of(weight: Any, bias: Any) -> dict[str, np.ndarray]:
    """A map to all heads, as the peers have it side by side, with the heads apart."""
    shape = (HEADS, FEATURES // HEADS)
    kernel = array(weight).T.reshape(FEATURES, *shape)
    return {"kernel": kernel, "bias": array(bias).reshape(shape)}


def output_of_heads(layer: Any) -> dict[str, np.ndarray]:
    kernel = array(layer.weight).T.reshape(HEADS, FEATURES // HEADS, FEATURES)
    return {"kernel": kernel, "bias": array(layer.bias)}


def feed_forward(normalisation: Any, up: Any, down: Any) -> dict[str, Any]:
    return {"norm": norm(normalisation), "up": linear(up), "down": linear(down)}


def attention_of_transformers(layer: Any) -> dict[str, Any]:
    maps = {"query": layer.linear_q, "key": layer.linear_k, "value": layer.linear_v}
    return {name: heads_of(each.weight, each.bias) for name, each in maps.items()} | {
        "output": output_of_heads(layer.linear_out)
    }


def attention_of_torch(layer: Any) -> dict[str, Any]:
    pieces = zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    named = zip(("query", "key", "value"), pieces, strict=True)
    return {name: heads_of(*each) for name, each in named} | {
        "output": output_of_heads(layer.out_proj)
    }


def conformer(layer: Any, normalisation: Any, future: int) -> dict[str, Any]:
    """Our parameters for a Conformer layer of transformers.

    Args:
        layer: The layer.
        normalisation: The one behind its depthwise convolution.
        future: Frames to the right that its kernel lacks to be centred; ours are zero there.
    """
    module = layer.conv_module
    # The gated half comes first; the peers' maps have no biases.
    value, gate = module.pointwise_conv1.weight[:, :, 0].chunk(2)
    zeros = np.zeros(FEATURES, np.float32)
    kernel = array(module.depthwise_conv.weight)[:, 0].T
    return {
        "feed_forward_in": feed_forward(
            layer.ffn1_layer_norm, layer.ffn1.intermediate_dense, layer.ffn1.output_dense
        ),
        "attention_norm": norm(layer.self_attn_layer_norm),
        "attention": attention_of_transformers(layer.self_attn),
        "convolution": {
            "norm": norm(module.layer_norm),
            "value": {"kernel": array(value).T, "bias": zeros},
            "gate": {"kernel": array(gate).T, "bias": zeros},
            "depthwise": np.pad(kernel, ((0, future), (0, 0))),
            "depthwise_norm": norm(normalisation),
            "output": {"kernel": array(module.pointwise_conv2.weight)[:, :, 0].T, "bias": zeros},
        },
        "feed_forward_out": feed_forward(
            layer.ffn2_layer_norm, layer.ffn2.intermediate_dense, layer.ffn2.output_dense
        ),
        "output_norm": norm(layer.final_layer_norm),
    }


def compare(torch: Any, module: nn.Module, params: dict[str, Any], peer: Any) -> None:
    """Outputs and input gradients of ours and of a function of tensors."""
    # Exactly our tree of parameters: nothing that is left out could hide.
    abstract = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), X, MASK)["params"])
    assert jax.tree.map(lambda p: p.shape, abstract) == jax.tree.map(lambda p: p.shape, params)

    def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = module.apply({"params": params}, x, MASK)
        return jnp.sum(y * WEIGHTS), y

    gradient, found = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(X))
    leaf = torch.from_numpy(X.copy()).requires_grad_(True)
    want = peer(leaf)
    (want * torch.from_numpy(WEIGHTS)).sum().backward()
    assert np.abs(leaf.grad.numpy()[MASK]).min() > 0
    np.testing.assert_allclose(found[MASK], array(want)[MASK], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(gradient[MASK], leaf.grad.numpy()[MASK], rtol=2e-3, atol=1e-4)


def additive_mask(torch: Any) -> Any:
    """[batch, 1, queries, keys], as the encoders of transformers give it to their layers."""
    hidden = ~torch.from_numpy(MASK)[:, None, None, :].expand(-1, 1, FRAMES, -1)
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


def settings(transformers: Any, family: str, **changes: Any) -> Any:
    return getattr(transformers, f"{family}Config")(
        hidden_size=FEATURES,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        hidden_act="swish",
        position_embeddings_type=None,
        attn_implementation="eager",
        **changes,
    )


def test_self_attention(torch: Any) -> None:
    layer = drawn(torch, torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True))
    padding = torch.from_numpy(~MASK)
    compare(
        torch,
        SelfAttention(HEADS),
        attention_of_torch(layer),
        lambda x: layer(x, x, x, key_padding_mask=padding, need_weights=False)[0],
    )


@pytest.mark.parametrize("context", [0, 2])
def test_local_self_attention(torch: Any, context: int) -> None:
    layer = drawn(torch, torch.nn.MultiheadAttention(FEATURES, HEADS, batch_first=True))
    frames = torch.arange(FRAMES)
    far = (frames[:, None] - frames[None, :]).abs() > context
    # Padded frames would see nothing but padding, which is NaN there: they may see themselves.
    hidden = far | (~torch.from_numpy(MASK)[:, None, :] & ~torch.eye(FRAMES, dtype=torch.bool))
    hidden = hidden.repeat_interleave(HEADS, dim=0)
    compare(
        torch,
        SelfAttention(HEADS, context=context),
        attention_of_torch(layer),
        lambda x: layer(x, x, x, attn_mask=hidden, need_weights=False)[0],
    )


def test_transformer_block(torch: Any) -> None:
    layer = torch.nn.TransformerEncoderLayer(
        FEATURES,
        HEADS,
        HIDDEN,
        activation=torch.nn.functional.silu,
        norm_first=True,
        batch_first=True,
    )
    layer = drawn(torch, layer)
    params = {
        "attention_norm": norm(layer.norm1),
        "attention": attention_of_torch(layer.self_attn),
        "feed_forward": feed_forward(layer.norm2, layer.linear1, layer.linear2),
    }
    padding = torch.from_numpy(~MASK)
    compare(
        torch,
        TransformerBlock(HEADS, HIDDEN),
        params,
        lambda x: layer(x, src_key_padding_mask=padding),
    )


def test_conformer_block_with_layer_norm(torch: Any, transformers: Any) -> None:
    """w2v-BERT 2.0's: its convolution looks back, as does a centred one that is zero ahead."""
    from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert

    config = settings(transformers, "Wav2Vec2Bert", conv_depthwise_kernel_size=3)
    layer = drawn(torch, modeling_wav2vec2_bert.Wav2Vec2BertEncoderLayer(config))
    compare(
        torch,
        ConformerBlock(HEADS, HIDDEN, kernel_size=5, groups=0),
        conformer(layer, layer.conv_module.depthwise_layer_norm, future=2),
        lambda x: layer(
            x, attention_mask=additive_mask(torch), conv_attention_mask=torch.from_numpy(MASK)
        ),
    )


@pytest.mark.parametrize("groups", [1, 3, FEATURES])
def test_conformer_block_with_group_norm(torch: Any, transformers: Any, groups: int) -> None:
    """wav2vec2-conformer's, with group normalisation in the place of batch normalisation.

    Its convolution is centred; it normalises over padding too, so that rows are run one by one.
    """
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer

    config = settings(transformers, "Wav2Vec2Conformer", conv_depthwise_kernel_size=5)
    layer = modeling_wav2vec2_conformer.Wav2Vec2ConformerEncoderLayer(config)
    layer.conv_module.batch_norm = torch.nn.GroupNorm(groups, FEATURES)
    layer = drawn(torch, layer)

    def rows(x: Any) -> Any:
        outputs = [layer(row[None, :length])[0] for row, length in zip(x, LENGTHS, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True)

    compare(
        torch,
        ConformerBlock(HEADS, HIDDEN, kernel_size=5, groups=groups),
        conformer(layer, layer.conv_module.batch_norm, future=0),
        rows,
    )


def test_rotary_positions(torch: Any, transformers: Any) -> None:
    """RoFormer's rotation in the order of features that LLaMA has."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    size = 6
    frequencies = 10_000.0 ** (-torch.arange(size // 2) / (size // 2))
    angles = torch.arange(FRAMES)[:, None] * frequencies.repeat(2)
    x = RNG.normal(size=(2, FRAMES, HEADS, size)).astype(np.float32)
    tensor = torch.from_numpy(x).transpose(1, 2)
    want, _ = apply_rotary_pos_emb(tensor, tensor, angles.cos()[None], angles.sin()[None])
    np.testing.assert_allclose(rotate(jnp.asarray(x)), want.transpose(1, 2), atol=1e-5)
