"""A block of a user's own in a `ConformerStack`: scanned or not, rematerialised, and its layers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.layers.conformer import ConformerStack
from maestro_jax.training import parameter_trees

X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
MASK = np.arange(5) < np.array([[5], [3]])


class Shift(nn.Module):
    """Adds a row's language and a learned vector, of which each layer has its own."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x, mask, language=None, *, deterministic=True):
        vector = self.param("vector", nn.initializers.normal(1.0), (x.shape[-1],))
        return x + self.scale * vector + language[:, None, None]


def stack(**settings: Any) -> ConformerStack:
    sizes = {"layers": 3, "features": 4, "heads": 2, "hidden": 8, "positions": "none"}
    return ConformerStack(**(sizes | settings))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_each_layer_has_parameters_of_its_own(scan: bool, remat: str) -> None:
    module = stack(block=Shift(scale=2.0), scan=scan, remat=remat)
    language = jnp.array([1, -1])
    variables = nn.unbox(module.init(jax.random.key(0), X, MASK, language))
    if scan:
        vectors = variables["params"]["layers"]["vector"]
    else:
        vectors = np.stack([variables["params"][f"layer_{i}"]["vector"] for i in range(3)])
    assert vectors.shape == (3, 4) and len(np.unique(vectors)) == 12

    def outputs(variables: Any) -> Any:
        return module.apply(variables, X, MASK, language, layer=2, method="with_intermediate")

    (top, middle), backward = jax.vjp(outputs, variables)
    for found, layers in ((top, 3), (middle, 2)):
        expected = (
            X + 2.0 * vectors[:layers].sum(axis=0) + layers * np.array([1, -1])[:, None, None]
        )
        np.testing.assert_allclose(found, np.where(MASK[..., None], expected, 0.0), rtol=1e-5)
    (gradients,) = backward((jnp.zeros_like(top), jnp.ones_like(middle)))
    leaves = dict(parameter_trees.named_leaves(gradients["params"]))
    rows = leaves["layers/vector"] if scan else [leaves[f"layer_{i}/vector"] for i in range(3)]
    # Eight valid frames, and nothing above the second layer.
    np.testing.assert_allclose(np.asarray(rows), [[16.0] * 4, [16.0] * 4, [0.0] * 4])


@pytest.mark.parametrize(
    "setting",
    [
        {"positions": "rotary"},
        {"attention_context": 4},
        {"attention_implementation": "whole"},
        {"attention_dropout": 0.0},
        {"adapter_features": 2},
    ],
)
def test_settings_of_conformer_blocks_alone_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"Shift, which does not read ConformerStack.{[*setting][0]}"
    ):
        stack(block=Shift(), **setting)
    stack(**setting)
