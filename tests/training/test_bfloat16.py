"""What is multiplied in bfloat16 and what is not, read from the traced step of a shipped model.

And what is multiplied as float32, read from what JAX lowers that step to for a TPU.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from maestro_jax.gin_utils import gin_config
from maestro_jax.training import parameter_trees
from maestro_jax.training.step import train_step

FILES = ["runs/pretrain.gin", "models/base.gin", "objectives/maestro.gin", "data/minivox_tiny.gin"]
SETTINGS = {
    "STEPS": "9",
    "WARMUP_STEPS": "1",
    "VOCAB_SIZE": "64",
    # As few layers as there can be: each is traced.
    "SPEECH_LAYERS": "2",
    "SHARED_LAYERS": "2",
    "TEXT_LAYERS": "1",
}


@pytest.fixture(scope="module")
def traced() -> Any:
    """The step's equations, each with its scope, the shapes of the new state, and the program."""
    run = gin_config.parse_and_build(FILES, SETTINGS)
    step = functools.partial(
        train_step,
        model=run.model,
        objective=run.objective,
        optimizer=run.optimizer,
        ema_decay=run.ema_decay,
        seed=run.seed,
    )
    state = parameter_trees.unbox(run.abstract_state())
    program = jax.jit(step).trace(state, run.batch_shapes())
    lowered = program.lower(lowering_platforms=("tpu",)).as_text(debug_info=True)
    return list(equations(program.jaxpr.jaxpr, "")), program.out_info[0], lowered


def equations(jaxpr: Any, outer: str) -> Iterator[tuple[str, Any]]:
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        yield scope, equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from equations(getattr(value, "jaxpr", value), scope)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def dtypes(found: Any, primitives: set[str], scope: str) -> list[tuple[str, set[str]]]:
    """Scopes and operand types of the equations of some primitives within a scope."""
    return [
        (where, {str(v.aval.dtype) for v in equation.invars if hasattr(v.aval, "dtype")})
        for where, equation in found
        if equation.primitive.name in primitives and re.search(scope, where)
    ]


@pytest.mark.extended
@pytest.mark.parametrize(
    "layer",
    [
        r"speech_encoder.*feed_forward_in.*up",
        r"shared_encoder.*feed_forward_out.*down",
        r"shared_encoder.*attention.*query",
        r"shared_encoder.*convolution.*value",
        r"text_encoder.*feed_forward.*up",
        r"refiner.*blocks.*value",
        r"duration_model.*block_0",
    ],
)
def test_layers_multiply_in_bfloat16_forwards_and_backwards(traced: Any, layer: str) -> None:
    products = dtypes(traced[0], {"dot_general"}, layer)
    # Once forwards, and for the gradients of inputs and of the kernel.
    assert len(products) >= 3
    for where, types in products:
        assert types == {"bfloat16"}, where


@pytest.mark.parametrize("encoder", ["speech_encoder/stack", "shared_encoder/stack"])
def test_softmax_and_statistics_are_float32(traced: Any, encoder: str) -> None:
    softmax = dtypes(traced[0], {"exp", "reduce_max"}, rf"{encoder}.*attention")
    assert softmax
    assert all(types == {"float32"} for _, types in softmax), softmax
    statistics = dtypes(traced[0], {"rsqrt"}, encoder)
    assert statistics
    assert all(types == {"float32"} for _, types in statistics), statistics


def test_quantizer_and_heads_are_float32(traced: Any) -> None:
    for part in ("quantizer", "code_head", "contrastive_projection"):
        products = dtypes(traced[0], {"dot_general"}, part)
        assert products, part
        assert all(types == {"float32"} for _, types in products), part


def test_float32_is_not_rounded_on_a_tpu_but_in_one_layer(traced: Any) -> None:
    """What asks for float32 in a bfloat16 model gets it: codes, similarities, spectra, durations.

    The head that predicts codes is left, a layer of 16 x 8192 outputs in BEST-RQ.
    """
    places = dict(re.findall(r'^(#loc\d*) = loc\("([^"]*)"', traced[2], re.MULTILINE))
    products = re.findall(
        r"stablehlo\.(?:dot_general|convolution).*"
        r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\).* loc\((#loc\d*)\)$",
        traced[2],
        re.MULTILINE,
    )
    lines = re.findall(r"stablehlo\.(?:dot_general|convolution).*", traced[2])
    assert len(products) == len(lines) > 100
    rounded = {
        places[place]
        for (*types, place), line in zip(products, lines, strict=True)
        # A gradient of float32 beside activations of bfloat16 is of a layer.
        if set(types) == {"f32"} and "[HIGHEST, HIGHEST]" not in line
    }
    assert rounded and all("code_head" in place for place in rounded), rounded
    exact = [p for (*_, p), line in zip(products, lines, strict=True) if "HIGHEST" in line]
    for part in ("frontend", "quantizer", "contrastive_projection", "duration_model"):
        assert any(part in places[place] for place in exact), part


def test_no_logarithm_or_exponential_of_bfloat16_anywhere(traced: Any) -> None:
    """Lattices, losses and softmax are made of them; gates are `logistic`."""
    found = dtypes(traced[0], {"exp", "exp2", "log", "log1p", "cumsum", "cumlogsumexp"}, "")
    assert len(found) > 50
    assert [where for where, types in found if "bfloat16" in types] == []


def test_the_state_is_float32(traced: Any) -> None:
    leaves = jax.tree.leaves((traced[1].params, traced[1].ema_params, traced[1].opt_state))
    kinds = {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    assert kinds == {jnp.dtype("float32")}
