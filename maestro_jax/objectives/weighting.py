"""Weights of loss terms that are learned, on top of those that are set.

`UncertaintyWeighting`: Kendall, Gal and Cipolla 2018 (arXiv 1705.07115), equation 10.
`GradientNormWeighting`: after GradNorm, Chen et al. 2018 (arXiv 1711.02257), equations 1 and 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.errors import UserError
from maestro_jax.losses.reduction import Weighted, mean

PARAMETERS = "loss_weighting"
"""Where a weighting keeps what it learns, beside the model's own parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UncertaintyWeighting:
    """A term counts by the uncertainty that is learned for it.

    With a log-variance s_i for each term, `exp(-s_i) L_i + s_i / 2`, where exp(s_i) is twice the
    variance of the source. s_i starts at 0: the weights that are set. A term without examples in a
    batch leaves its s_i alone.

    Attributes:
        smallest: Lower bound of a factor exp(-s_i).
        largest: Upper bound of a factor.
    """

    smallest: float = 0.01
    largest: float = 100.0

    def init(self, terms: tuple[str, ...]) -> dict[str, Any]:
        """Returns new parameters, a scalar log-variance per term."""
        return {
            "log_variance": {
                term: nn.with_logical_partitioning(nn.initializers.zeros_init(), ())(
                    jax.random.key(0), ()
                )
                for term in terms
            }
        }

    def total(
        self, terms: Mapping[str, Weighted], weights: Mapping[str, Any], params: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the sum to minimise.

        Args:
            terms: Total and count of each term.
            weights: The weight that is set for each term; terms of weight 0 stay out.
            params: What `init` made, learned meanwhile.

        Returns:
            The sum, and the factor of each term.
        """
        total = jnp.zeros(())
        factors = {}
        for name, term in terms.items():
            bound = (-jnp.log(self.largest), -jnp.log(self.smallest))
            # Clipped before both uses: at a bound the factor stays, and s_i has no gradient that
            # would take it further.
            log_variance = jnp.clip(params["log_variance"][name], *bound)
            counts = (term[1] > 0) & (jnp.asarray(weights[name]) != 0)
            total += weights[name] * jnp.exp(-log_variance) * mean(term)
            # For a term without examples s_i / 2 alone would be minimised, which drives its weight
            # up.
            total += jnp.where(counts, 0.5 * log_variance, 0.0)
            factors[name] = jnp.exp(-log_variance)
        return total, factors


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientNormWeighting:
    """Weights under which the terms' gradients are of comparable size.

    Every `every` steps the norm G_i of each weighted term's gradient is measured. A term's weight
    grows where G_i is below its target `mean(G) r_i^alpha`, r_i being its share of the loss that it
    began with relative to the average of these shares: terms that learn slowly get more. Other than
    in the source the weights change by a factor, `(target / G_i)^rate`, so that they stay positive
    whatever the scale of a term; as there, they are rescaled to an average of 1.

    Attributes:
        every: Steps between two measurements; each costs a backward pass for every term.
        alpha: Strength of the pull towards equal training rates.
        rate: How far a measurement moves the weights, 0 to 1.
        largest: Upper bound of a weight before rescaling; its inverse is the lower bound.
    """

    every: int = 100
    alpha: float = 0.5
    rate: float = 0.1
    largest: float = 100.0

    def __post_init__(self) -> None:
        """Refuses numbers out of range."""
        if self.every < 1 or not 0.0 < self.rate <= 1.0 or self.largest < 1.0:
            raise UserError(
                f"GradientNormWeighting has every={self.every}, rate={self.rate}, "
                f"largest={self.largest}; every and largest must be 1 or more, rate in (0, 1]."
            )

    def updated(
        self,
        weights: Mapping[str, float],
        norms: Mapping[str, float],
        losses: Mapping[str, float],
        first_losses: Mapping[str, float],
    ) -> dict[str, float]:
        """Returns the weights after a measurement.

        Args:
            weights: The learned weight of every term.
            norms: Norm of each measured term's gradient, with the weight that is set for it but
                without the learned one; terms that are absent or 0 keep their weight.
            losses: The measured terms' losses now.
            first_losses: The losses at their first measurement.
        """
        measured = [name for name in norms if norms[name] > 0.0 and first_losses[name] > 0.0]
        if len(measured) < 2:
            return dict(weights)
        sizes = {name: weights[name] * norms[name] for name in measured}
        average = sum(sizes.values()) / len(measured)
        ratios = {name: max(losses[name], 1e-8) / first_losses[name] for name in measured}
        typical = sum(ratios.values()) / len(measured)
        moved = dict(weights)
        for name in measured:
            # GradNorm, equation 2: mean(G) r_i^alpha.
            target = average * (ratios[name] / typical) ** self.alpha
            factor = (target / sizes[name]) ** self.rate
            moved[name] = min(max(weights[name] * factor, 1.0 / self.largest), self.largest)
        # Weights of absent terms are left alone, and out of the average of 1.
        scale = len(measured) / sum(moved[name] for name in measured)
        return {name: w * scale if name in measured else w for name, w in moved.items()}


Weighting = UncertaintyWeighting | GradientNormWeighting
