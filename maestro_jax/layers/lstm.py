"""An LSTM layer (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

The loop over the steps holds what depends on the step before and nothing else: the input's part of
the gates is one product for all steps, and so is the gradient of the recurrent kernel. A loop that
JAX differentiates by itself would add that gradient up step by step, each time from a few rows, and
in the dtype of the products: bfloat16 drops what late steps add.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maestro_jax.layers.partitioned import Dense, constrain, parameter, shards

LstmState = tuple[jax.Array, jax.Array]
"""Hidden and cell state, each `[batch, units]`."""


class LstmLayer(nn.Module):
    """An LSTM layer.

    Attributes:
        units: Size of the state and of the output.
        dtype: Computation dtype; the cell state is float32.
    """

    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, state: LstmState) -> tuple[jax.Array, LstmState]:
        """Runs over a sequence.

        Args:
            x: `[batch, steps, features]`.
            state: Hidden and cell state, each `[batch, units]` float32.

        Returns:
            Outputs `[batch, steps, units]` and the last state.
        """
        # [batch, steps, 4 * units]; the order of the gates is input, forget, candidate, output.
        gates = Dense(4 * self.units, ("embed", "mlp"), dtype=self.dtype, name="input")(x)
        init, shape = nn.initializers.orthogonal(), (self.units, 4 * self.units)
        recurrent = parameter(self, "recurrent", init, ("embed", "mlp"), shape).astype(self.dtype)
        # Rows are split and features are not: the loop then needs no communication in its steps.
        gates = constrain(gates, "batch", None, None)
        recurrent = constrain(recurrent, None, None)
        outputs, hidden, cell = recurrence(jnp.swapaxes(gates, 0, 1), recurrent, *state)
        return jnp.swapaxes(outputs, 0, 1).astype(self.dtype), (hidden, cell)


@jax.custom_vjp
def recurrence(
    gates: jax.Array, recurrent: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the loop of an LSTM.

    The recurrent product has the dtype of its kernel; gates and cell are float32.

    Args:
        gates: The input's part of the gates, `[steps, batch, 4 * units]`.
        recurrent: The recurrent kernel, `[units, 4 * units]`.
        hidden: Hidden state before the first step, `[batch, units]` float32.
        cell: Cell state before the first step, `[batch, units]` float32.

    Returns:
        The hidden states after every step, `[steps, batch, units]`, and the last hidden and cell
        state, all float32.
    """

    def step(carry: LstmState, gate: jax.Array) -> tuple[LstmState, jax.Array]:
        carry = _cell(_total(gate, carry[0], recurrent), carry[1])
        return carry, carry[0]

    last, outputs = jax.lax.scan(step, (hidden, cell), gates)
    return outputs, last[0], last[1]


def _total(gate: jax.Array, hidden: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Adds the state's part to the input's part of the gates, `[batch, 4 * units]` float32."""
    return (gate + _product(hidden.astype(recurrent.dtype), recurrent)).astype(jnp.float32)


def _cell(gate: jax.Array, cell: jax.Array) -> LstmState:
    """Computes hidden and cell state from the gates and the cell state before."""
    entry, forget, candidate, output = jnp.split(gate, 4, axis=-1)
    # A forget gate that starts open (bias 1) lets gradients through from the first step.
    cell = nn.sigmoid(forget + 1.0) * cell + nn.sigmoid(entry) * jnp.tanh(candidate)
    return nn.sigmoid(output) * jnp.tanh(cell), cell


def _product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies `[batch, inputs]` by `[inputs, outputs]`."""
    if -(-rows.shape[0] // shards("batch")) > 1:
        return rows @ kernel
    # The TPU compiler takes a product of one row from the matrix unit, and reads the kernel more
    # than twice as slowly for it; a second row, which is dropped, costs nothing.
    return jax.lax.platform_dependent(
        rows,
        kernel,
        tpu=lambda rows, kernel: jnp.matmul(jnp.stack([rows, rows]), kernel)[0],
        default=jnp.matmul,
    )


def _forward(
    gates: jax.Array, recurrent: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    def step(carry: LstmState, gate: jax.Array) -> tuple[LstmState, tuple[jax.Array, ...]]:
        total = _total(gate, carry[0], recurrent)
        after = _cell(total, carry[1])
        return after, (after[0], total, carry[1])

    last, (outputs, totals, cells) = jax.lax.scan(step, (hidden, cell), gates)
    # An empty array tells the backward pass the dtype of the gates.
    return (outputs, last[0], last[1]), (outputs, totals, cells, recurrent, hidden, gates[:0])


def _backward(
    residuals: tuple[jax.Array, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    outputs, totals, cells, recurrent, first, empty = residuals
    d_outputs, d_hidden, d_cell = cotangents
    transposed = recurrent.T

    def step(carry: LstmState, inputs: tuple[jax.Array, ...]) -> tuple[LstmState, jax.Array]:
        total, cell, d_output = inputs
        _, pull_back = jax.vjp(_cell, total, cell)
        d_gate, d_cell = pull_back((carry[0] + d_output, carry[1]))
        d_gate = d_gate.astype(recurrent.dtype)
        return (_product(d_gate, transposed).astype(jnp.float32), d_cell), d_gate

    (d_hidden, d_cell), d_gates = jax.lax.scan(
        step, (d_hidden, d_cell), (totals, cells, d_outputs), reverse=True
    )
    hiddens = jnp.concatenate([first[None], outputs[:-1]]).astype(recurrent.dtype)
    d_recurrent = jnp.einsum("sbi,sbj->ij", hiddens, d_gates, preferred_element_type=jnp.float32)
    return d_gates.astype(empty.dtype), d_recurrent.astype(recurrent.dtype), d_hidden, d_cell


recurrence.defvjp(_forward, _backward)
