"""Every way to compute attention against its definition in float64, gradients too."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu
from jax.extend import core
from jax.test_util import check_grads

from maestro_jax.layers.attention import IMPLEMENTATIONS, SelfAttention
from maestro_jax.layers.conformer import ConformerBlock, ConformerStack
from maestro_jax.layers.dot_product_attention import (
    blocked_attention,
    cudnn_supports,
    local_attention,
    local_is_cheaper,
    pallas_attention,
    whole_attention,
)

BATCH, HEADS, FRAMES, SIZE = 3, 2, 75, 4
LENGTHS = (75, 40, 0)
RNG = np.random.default_rng(0)
QUERY, KEY, VALUE, COTANGENT = RNG.normal(size=(4, BATCH, HEADS, FRAMES, SIZE)).astype(np.float32)
MASK = np.arange(FRAMES) < np.array(LENGTHS)[:, None]
# Padded frames' outputs count for nothing, as in the models.
COTANGENT = COTANGENT * MASK[:, None, :, None]


def definition(context: int | None) -> tuple[np.ndarray, ...]:
    """Output and gradients of query, key and value, query by query in float64."""
    query, key, value, cotangent = (x.astype(np.float64) for x in (QUERY, KEY, VALUE, COTANGENT))
    output, dquery, dkey, dvalue = (np.zeros(query.shape) for _ in range(4))
    for row, length in enumerate(LENGTHS):
        for head in range(HEADS):
            q, k, v, dy = (x[row, head] for x in (query, key, value, cotangent))
            for frame in range(length):
                first = 0 if context is None else max(0, frame - context)
                last = length if context is None else min(length, frame + context + 1)
                near = slice(first, last)
                logits = k[near] @ q[frame] / np.sqrt(SIZE)
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                output[row, head, frame] = weights @ v[near]
                dweights = v[near] @ dy[frame]
                dlogits = weights * (dweights - weights @ dweights) / np.sqrt(SIZE)
                dquery[row, head, frame] = dlogits @ k[near]
                dkey[row, head, near] += np.outer(dlogits, q[frame])
                dvalue[row, head, near] += np.outer(weights, dy[frame])
    return output, dquery, dkey, dvalue


def whole(query, key, value, mask, *, context=None, **drop):
    seen = mask[:, None, None, :]
    if context is not None:
        frames = np.arange(mask.shape[1])
        seen = seen & (abs(frames[:, None] - frames) <= context)
    return whole_attention(query, key, value, seen, **drop)


WAYS = {
    "whole": whole,
    "one block": blocked_attention,
    "blocks of 15": functools.partial(blocked_attention, block=16),
    # The last of four has a row too many.
    "blocks of 19": functools.partial(blocked_attention, block=20),
    "band": local_attention,
}
CASES = [(way, None) for way in WAYS if way != "band"] + [
    (way, context) for way in WAYS for context in (0, 3, 33, 80)
]


@pytest.mark.parametrize(("way", "context"), CASES)
def test_outputs_and_gradients_are_those_of_the_definition(way: str, context: int | None) -> None:
    settings = {} if context is None else {"context": context}
    attend = functools.partial(WAYS[way], mask=jnp.asarray(MASK), **settings)

    @jax.jit
    def both(query, key, value):
        output, pullback = jax.vjp(lambda *x: attend(*x), query, key, value)
        return output, *pullback(jnp.asarray(COTANGENT))

    found = both(QUERY, KEY, VALUE)
    valid = MASK[:, None, :, None]
    expected = definition(context)
    np.testing.assert_allclose(np.where(valid, found[0], 0.0), expected[0], atol=2e-6)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    # The third example is absent: nothing of it may be infinite or no number.
    assert all(np.isfinite(array).all() for array in found)


@pytest.mark.parametrize("way", ["whole", "blocks of 15", "band"])
def test_dropout_has_its_own_gradient_and_no_bias(way: str) -> None:
    """The gradient, by finite differences, of weights that the same random key hides."""
    context = {"context": 3} if way == "band" else {}
    inputs = [jnp.asarray(x[:1, :1, :22]) for x in (QUERY, KEY, VALUE)]
    attend = functools.partial(WAYS[way], mask=jnp.ones((1, 22), bool), dropout=0.3, **context)
    key = jax.random.key(3)
    dropped = jax.jit(lambda *x: attend(*x, rng=key))
    check_grads(dropped, inputs, order=1, modes="rev", atol=2e-2, rtol=2e-2, eps=1e-2)
    assert not np.allclose(dropped(*inputs), attend(*inputs), atol=1e-2)
    keys = jax.random.split(jax.random.key(4), 2000)
    many = jax.jit(jax.vmap(lambda key: attend(*inputs, rng=key)))(keys)
    error = np.std(many, axis=0) / np.sqrt(len(keys))
    assert (abs(np.mean(many, axis=0) - attend(*inputs)) < 6 * error + 1e-6).all()


def test_the_pallas_kernel_computes_the_definition() -> None:
    """Interpreted, frames padded to 128 and masked by segments."""
    by_frame = [x.transpose(0, 2, 1, 3) for x in (QUERY, KEY, VALUE)]
    with pallas_tpu.force_tpu_interpret_mode():
        output, pullback = jax.vjp(lambda *x: pallas_attention(*x, jnp.asarray(MASK)), *by_frame)
        found = output, *pullback(jnp.asarray(COTANGENT.transpose(0, 2, 1, 3)))
    found = [np.asarray(x).transpose(0, 2, 1, 3) for x in found]
    expected = definition(None)
    np.testing.assert_allclose(
        np.where(MASK[:, None, :, None], found[0], 0), expected[0], atol=1e-5
    )
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    assert all(np.isfinite(array).all() for array in found)


def largest(program, *arguments) -> int:
    """Numbers of the largest array that a program makes, loops' bodies included."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (out.aval.size for out in equation.outvars if hasattr(out.aval, "size"))
            for inner in core.jaxprs_in_params(equation.params):
                yield from sizes(getattr(inner, "jaxpr", inner))

    return max(sizes(jax.make_jaxpr(program)(*arguments).jaxpr))


def test_blocks_and_bands_never_hold_the_square() -> None:
    frames, context, size = 4096, 64, 8
    x = jax.ShapeDtypeStruct((1, 1, frames, size), jnp.float32)
    mask = jnp.ones((1, frames), bool)

    def gradient(attend, **settings):
        return largest(
            jax.grad(lambda q, k, v: attend(q, k, v, mask, **settings).sum(), (0, 1, 2)), x, x, x
        )

    assert gradient(whole) == frames**2
    assert gradient(blocked_attention) == 128 * frames
    assert gradient(local_attention, context=context) == frames * 3 * context


def test_the_implementation_follows_from_shapes() -> None:
    def chosen(frames: int, drops: bool = False, size: int = 64, **settings: object) -> str:
        return SelfAttention(heads=2, **settings).resolved_implementation(frames, size, drops=drops)

    assert chosen(60) == "whole"
    assert chosen(750) == "blocked"
    assert chosen(750, context=128) == ("local" if local_is_cheaper(750, 128) else "blocked")
    assert chosen(1500, context=128) == "local"
    assert chosen(300, context=128) == "blocked"
    assert chosen(750, implementation="pallas") == "pallas"
    assert chosen(750, implementation="pallas", drops=True) == "blocked"
    with pytest.raises(ValueError, match="needs a GPU"):
        chosen(750, implementation="cudnn")
    assert cudnn_supports(jnp.bfloat16, 128)
    assert not cudnn_supports(jnp.float32, 128)
    assert not cudnn_supports(jnp.float16, 136)
    assert not cudnn_supports(jnp.float16, 60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"implementation": "flash"}, "choose one of"),
        ({"implementation": "local"}, "no context"),
        ({"implementation": "cudnn", "context": 3}, "cannot be limited"),
        ({"implementation": "pallas", "context": 3}, "cannot be limited"),
    ],
)
def test_choices_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfAttention(heads=2, **settings)


def test_the_stack_hands_its_implementation_and_its_rate_down() -> None:
    stack = ConformerStack(
        layers=2,
        features=8,
        heads=2,
        hidden=8,
        groups=2,
        dropout=0.5,
        attention_dropout=0.0,
        attention_implementation="blocked",
    )
    x, mask = jnp.ones((1, 6, 8)), jnp.ones((1, 6), bool)
    seen = []

    def record(run, arguments, settings, context):
        if isinstance(context.module, SelfAttention):
            seen.append((context.module.implementation, context.module.dropout))
        return run(*arguments, **settings)

    with nn.intercept_methods(record):
        jax.eval_shape(stack.init, jax.random.key(0), x, mask)
    assert set(seen) == {("blocked", 0.0)}
    assert ConformerBlock(2, 8).attention_implementation in IMPLEMENTATIONS
