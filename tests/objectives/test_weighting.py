"""Learned weights against their formulas, and where they lead."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maestro_jax.objectives.weighting import GradientNormWeighting, UncertaintyWeighting
from maestro_jax.training import parameter_trees

TERMS = {"a": (jnp.float32(6.0), jnp.float32(2.0)), "b": (jnp.float32(0.5), jnp.float32(1.0))}


def unboxed(weighting, names):
    return parameter_trees.unbox(weighting.init(tuple(names)))


class TestUncertainty:
    def test_it_begins_with_the_weights_that_are_set(self):
        weighting = UncertaintyWeighting()
        total, factors = weighting.total(TERMS, {"a": 2.0, "b": 3.0}, unboxed(weighting, TERMS))
        assert float(total) == pytest.approx(2.0 * 3.0 + 3.0 * 0.5)
        assert {name: float(factor) for name, factor in factors.items()} == {"a": 1.0, "b": 1.0}

    def test_equation_10(self):
        """L / (2 sigma^2) + log sigma, up to a constant, for any sigma."""
        weighting = UncertaintyWeighting()
        sigma = {"a": 1.7, "b": 0.4}
        params = {"log_variance": {name: jnp.log(2 * s**2) for name, s in sigma.items()}}
        total, _ = weighting.total(TERMS, {"a": 1.0, "b": 1.0}, params)
        losses = {"a": 3.0, "b": 0.5}
        expected = sum(losses[n] / (2 * s**2) + np.log(s) for n, s in sigma.items())
        assert float(total) == pytest.approx(expected + np.log(2) / 2 * 2, rel=1e-6)

    def test_descent_ends_where_the_variance_is_the_loss(self):
        """The minimum over s of exp(-s) L + s / 2 is at exp(s) = 2 L."""
        weighting = UncertaintyWeighting()
        params = unboxed(weighting, TERMS)
        gradient = jax.jit(jax.grad(lambda p: weighting.total(TERMS, {"a": 1.0, "b": 1.0}, p)[0]))
        for _ in range(300):
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient(params))
        found = {name: float(jnp.exp(s)) for name, s in params["log_variance"].items()}
        assert found == pytest.approx({"a": 6.0, "b": 1.0}, rel=1e-3)

    def test_an_absent_term_and_a_term_of_weight_zero_learn_nothing(self):
        weighting = UncertaintyWeighting()
        terms = {**TERMS, "absent": (jnp.zeros(()), jnp.zeros(()))}
        weights = {"a": 1.0, "b": 0.0, "absent": 1.0}
        gradient = jax.grad(lambda p: weighting.total(terms, weights, p)[0])
        found = gradient(unboxed(weighting, terms))["log_variance"]
        assert float(found["absent"]) == float(found["b"]) == 0.0
        assert float(found["a"]) == pytest.approx(-3.0 + 0.5)


class TestGradientNorm:
    def test_one_measurement(self):
        weighting = GradientNormWeighting(alpha=1.0, rate=1.0)
        found = weighting.updated(
            {"a": 1.0, "b": 1.0, "c": 1.0},
            norms={"a": 4.0, "b": 1.0},
            losses={"a": 2.0, "b": 1.0},
            first_losses={"a": 4.0, "b": 4.0},
        )
        # r = 1/2 and 1/4, relative to 3/8: 4/3 and 2/3; targets 2.5 times that, over 4 and 1.
        raw = np.array([2.5 * 4 / 3 / 4, 2.5 * 2 / 3 / 1])
        expected = raw * 2 / raw.sum()
        assert [found["a"], found["b"]] == pytest.approx(list(expected))
        assert found["c"] == 1.0

    def test_measurements_end_where_gradients_are_equal(self):
        weighting = GradientNormWeighting(alpha=0.0)
        weights = {"a": 1.0, "b": 1.0, "c": 1.0}
        norms = {"a": 10.0, "b": 1.0, "c": 0.3}
        for _ in range(200):
            weights = weighting.updated(weights, norms, norms, norms)
        sizes = [weights[name] * norms[name] for name in norms]
        assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-3)
        assert sum(weights.values()) == pytest.approx(3.0)

    def test_a_term_that_learns_slowly_gets_more(self):
        weighting = GradientNormWeighting(alpha=1.0)
        found = weighting.updated(
            {"fast": 1.0, "slow": 1.0},
            norms={"fast": 1.0, "slow": 1.0},
            losses={"fast": 0.1, "slow": 0.9},
            first_losses={"fast": 1.0, "slow": 1.0},
        )
        assert found["slow"] > 1.0 > found["fast"]

    @pytest.mark.parametrize("norms", [{}, {"a": 1.0}, {"a": 0.0, "b": 2.0}])
    def test_fewer_than_two_terms_change_nothing(self, norms):
        ones = {"a": 1.0, "b": 1.0}
        assert GradientNormWeighting().updated(ones, norms, ones, ones) == ones

    def test_numbers_out_of_range_are_refused(self):
        with pytest.raises(ValueError, match="rate=0"):
            GradientNormWeighting(rate=0.0)
