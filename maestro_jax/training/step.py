"""One training step: a pure function of the state and a batch, and its compiled form on a mesh."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maestro_jax.batches import SAMPLE_RATE, SEQUENCE_LIMITS
from maestro_jax.losses.reduction import mean
from maestro_jax.objectives.base import Batch, Controls, Metrics, Objective
from maestro_jax.training import parameter_trees
from maestro_jax.training.accumulation import MicrobatchedTerms, accumulated_loss, micro_batches
from maestro_jax.training.optimizers import Optimizer, update_ema
from maestro_jax.training.partitioning import replicated
from maestro_jax.training.state import TrainState

if TYPE_CHECKING:
    from maestro_jax.training.run import TrainRun


def jit_train_step(run: TrainRun, mesh: Mesh, shardings: TrainState) -> Any:
    """Jits `train_step` for a mesh; trace it inside ``partitioning.activate(mesh)``.

    Args:
        run: The run.
        mesh: The device mesh.
        shardings: Shardings of the state, whose buffers are donated.

    Returns:
        A jitted function of the state, the batch and the controls of `CurriculumController`. It
        returns the next state, laid out as the one before, and replicated metrics.
    """
    return jax.jit(
        functools.partial(
            train_step,
            model=run.model,
            objective=run.objective,
            optimizer=run.optimizer,
            ema_decay=run.ema_decay,
            seed=run.seed,
            accumulate=run.accumulate,
            param_shardings=shardings.params,
        ),
        # State as laid out, rows of batches split over devices, controls on all of them.
        in_shardings=(shardings, run.partitioning.batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        # The new state takes the buffers of the old one: two would not fit beside each other.
        donate_argnums=0,
    )


def _step_key(state: TrainState, controls: Controls | None, seed: int) -> jax.Array:
    """Returns the random key of a step."""
    given = None if controls is None else controls.seed
    return jax.random.fold_in(jax.random.key(seed if given is None else given), state.step)


def train_step(
    state: TrainState,
    batch: Batch,
    controls: Controls | None = None,
    *,
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    ema_decay: float | None,
    seed: int,
    accumulate: int = 1,
    param_shardings: Any = None,
) -> tuple[TrainState, Metrics]:
    """Computes one gradient step.

    A step whose loss or gradient is not finite changes nothing but the step number; the metric
    ``skipped_steps`` counts it.

    Args:
        state: State before the step.
        batch: ``{stream: {feature: array}}``, global arrays.
        controls: What was decided between steps, for the objective; None for nothing.
        model: The model.
        objective: The objective, which computes loss and metrics from model, parameters and batch.
        optimizer: Configuration of the optimizer.
        ema_decay: Decay of the moving average of the parameters; None if the state has none.
        seed: Seed of the run, unless the controls have it; the random key of a step is a function
            of (seed, step).
        accumulate: Number of microbatches in which the batch is processed, which saves memory. Loss
            and gradient are those of the whole batch. Each microbatch has a random key of its own.
        param_shardings: Shardings of the parameters, in which gradients of microbatches are
            summed.

    Returns:
        The state after the step, and ``{name: (total, count)}`` of float32 scalars.
    """
    # A function of seed and step: a resumed run draws what an uninterrupted one would have.
    rng = _step_key(state, controls, seed)
    if controls is not None:
        optimizer = optimizer.ending_at(controls.schedule_ends)

    if accumulate > 1:
        named = [parameter_trees.named_leaves(t) for t in optimizer.by_group(state.params).values()]
        loss, metrics, gradients = accumulated_loss(
            objective,
            state.params,
            microbatched_terms(objective, model, state, batch, controls, rng, accumulate),
            step=state.step,
            controls=controls,
            trained={name for leaves in named for name, _ in leaves},
            shardings=param_shardings,
        )
    else:

        def loss_of(params: Any) -> tuple[jax.Array, Metrics]:
            return objective.loss(
                model,
                params,
                state.ema_params,
                batch,
                rng=rng,
                step=state.step,
                controls=controls,
                train=True,
            )

        (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    # Without the parameters that are frozen for good: the compiler then drops their gradients.
    by_group = optimizer.by_group(gradients)
    gradient_norm = optax.tree.norm(by_group)
    # A norm is finite only if every element is.
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    updates, opt_state = optimizer.build(state.params).update(
        gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    average = state.ema_params
    if ema_decay is not None:
        average = update_ema(average, params, state.step, ema_decay)

    def keep_if_finite(new: Any, old: Any) -> Any:
        # A choice on the device: no step waits for the host to look at the loss.
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    trained = {name for part in by_group.values() for name, _ in parameter_trees.named_leaves(part)}

    def keep_if_frozen(new: Any, old: Any) -> Any:
        # The buffer itself: to add 0 to a parameter takes an operation and often a copy.
        before = dict(parameter_trees.named_leaves(old))
        return parameter_trees.map_named(lambda n, leaf: leaf if n in trained else before[n], new)

    new_state = TrainState(
        # Also for a step that was skipped: its batch and its key are used up, and would fail again.
        step=state.step + 1,
        params=keep_if_frozen(keep_if_finite(params, state.params), state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
        ema_params=keep_if_finite(average, state.ema_params),
    )
    one = jnp.ones((), jnp.float32)
    if len(by_group) > 1:
        metrics |= {
            f"grad_norm/{group}": (optax.tree.norm(part), one) for group, part in by_group.items()
        }
    metrics = {
        **stream_sizes(batch),
        "loss": (loss.astype(jnp.float32), one),
        **metrics,
        "grad_norm": (gradient_norm, one),
        "param_norm": (optax.tree.norm(new_state.params), one),
        "learning_rate": (optimizer.schedule(state.step), one),
        **{
            f"learning_rate/{group}": (rate, one)
            for group, rate in optimizer.group_schedules(state.step).items()
        },
    }
    # One value that is not finite must not spoil the average over many steps.
    metrics = {name: _zero_if_not_finite(*metric) for name, metric in metrics.items()}
    metrics["skipped_steps"] = (1.0 - finite.astype(jnp.float32), one)
    return new_state, metrics


def microbatched_terms(
    objective: Objective,
    model: nn.Module,
    state: TrainState,
    batch: Batch,
    controls: Controls | None,
    rng: jax.Array,
    count: int,
) -> MicrobatchedTerms:
    """Splits a batch into microbatches and returns the loss terms to compute of each.

    Args:
        objective: The objective.
        model: The model.
        state: The state, whose step and averaged parameters are used.
        batch: ``{stream: {feature: array}}``, global arrays.
        controls: What was decided between steps.
        rng: Random key of the step.
        count: Number of microbatches.
    """

    def terms(params: Any, averages: Any, microbatch: Any, key: jax.Array) -> Any:
        return objective.loss_terms(
            model,
            params,
            averages,
            microbatch,
            rng=key,
            step=state.step,
            controls=controls,
            train=True,
        )

    return MicrobatchedTerms(
        terms=terms,
        averages=state.ema_params,
        microbatches=micro_batches(batch, count),
        count=count,
        rng=rng,
    )


def term_gradient_norms(
    state: TrainState,
    batch: Batch,
    controls: Controls | None = None,
    *,
    model: nn.Module,
    objective: Objective,
    seed: int,
    accumulate: int = 1,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Computes the gradient norm of each loss term's mean, before any weight, and the means.

    Takes one forward pass and one backward pass per term: a loop over the terms, of which a single
    backward pass is compiled. With microbatches, both passes per term.

    Args:
        state: The training state.
        batch: ``{stream: {feature: array}}``.
        controls: As for `train_step`.
        model: The model.
        objective: Objective.
        seed: Seed of the run; dropout and masks are those of the step.
        accumulate: Number of microbatches, as for `train_step`.

    Returns:
        Scalars by term: norms over all parameters, and means. A term whose stream has no examples
        has a norm and a mean of 0.
    """
    rng = _step_key(state, controls, seed)
    if accumulate > 1:
        terms = microbatched_terms(objective, model, state, batch, controls, rng, accumulate)
        return _norms_over_microbatches(terms, state.params)

    def means(params: Any) -> dict[str, jax.Array]:
        inputs = (model, params, state.ema_params, batch)
        options: dict[str, Any] = {
            "rng": rng,
            "step": state.step,
            "controls": controls,
            "train": True,
        }
        terms, _ = objective.loss_terms(*inputs, **options)
        return {name: mean(term) for name, term in terms.items()}

    values, backward = jax.vjp(means, state.params)
    names = sorted(values)

    def norm(one_hot: jax.Array) -> jax.Array:
        cotangents = {name: one_hot[index] for index, name in enumerate(names)}
        return optax.tree.norm(backward(cotangents)[0])

    # One backward pass per row of the identity matrix [terms, terms].
    norms = jax.lax.map(norm, jnp.eye(len(names), dtype=jnp.float32))
    return {name: norms[index] for index, name in enumerate(names)}, values


def _norms_over_microbatches(
    terms: MicrobatchedTerms, params: Any
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    counts = terms.counts(params)
    names = sorted(counts)

    def of_term(one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
        scales = {
            # The slope of one mean, total over count, and 0 for the other terms.
            name: one_hot[index] / jnp.maximum(counts[name], 1.0)
            for index, name in enumerate(names)
        }
        gradients, totals, _ = terms.gradient(params, scales)
        value = sum((scales[name] * totals[name] for name in names), jnp.zeros(()))
        return optax.tree.norm(gradients), value

    norms, values = jax.lax.map(of_term, jnp.eye(len(names), dtype=jnp.float32))
    return (
        {name: norms[index] for index, name in enumerate(names)},
        {name: values[index] for index, name in enumerate(names)},
    )


def stream_sizes(batch: Batch) -> Metrics:
    """Counts what a batch holds of each stream.

    Args:
        batch: ``{stream: {feature: array}}``, with a ``<feature>_length`` `[batch]`, 0 in rows
            without an example.

    Returns:
        ``<stream>/examples`` and, as far as a stream has them, ``<stream>/audio_seconds`` and
        ``<stream>/tokens`` (of texts and translations): the amount, with a count of 1 per step.
        Also ``<stream>/audio_padding`` and ``<stream>/token_padding``: the padded amount, with the
        valid amount as the count; 1 means no padding at all.
    """
    one = jnp.ones((), jnp.float32)
    sizes: Metrics = {}
    for stream, features in batch.items():
        lengths = {
            name: features[f"{name}_length"].astype(jnp.float32)
            for name in SEQUENCE_LIMITS
            if f"{name}_length" in features
        }
        if not lengths:
            continue
        present = jnp.asarray(sum(lengths.values())) > 0  # [batch]
        sizes[f"{stream}/examples"] = (jnp.sum(present.astype(jnp.float32)), one)
        texts = [length for name, length in lengths.items() if name != "audio"]
        if "audio" in lengths:
            sizes[f"{stream}/audio_seconds"] = (jnp.sum(lengths["audio"]) / SAMPLE_RATE, one)
        if texts:
            sizes[f"{stream}/tokens"] = (jnp.sum(sum(texts)), one)
        # Never a set: in its order, which differs between processes, hosts would compile different
        # programs, and a restart would not find its own in the cache.
        padded_audio = [name for name in lengths if name in features and name == "audio"]
        padded_texts = [name for name in lengths if name in features and name != "audio"]
        for kind, padded in (("audio", padded_audio), ("token", padded_texts)):
            if padded:
                sizes[f"{stream}/{kind}_padding"] = (
                    jnp.asarray(sum(features[name].size for name in padded), jnp.float32),
                    jnp.sum(sum(lengths[name] for name in padded)),
                )
    return sizes


def _zero_if_not_finite(total: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = jnp.asarray(total, jnp.float32)
    count = jnp.asarray(count, jnp.float32)
    finite = jnp.isfinite(total) & jnp.isfinite(count)
    return jnp.where(finite, total, 0.0), jnp.where(finite, count, 0.0)


def describe_shapes(batch: Batch) -> str:
    """Formats the shapes of a batch, as in ``paired 4 x 160000, 64; speech 8 x 240000``.

    Args:
        batch: ``{stream: {feature: array}}``; as for JAX, the order of streams means nothing.
    """
    parts = []
    for stream, features in sorted(batch.items()):
        shapes = [features[name].shape for name in SEQUENCE_LIMITS if name in features]
        lengths = ", ".join(str(length) for _, length in shapes)
        parts.append(f"{stream} {shapes[0][0]} x {lengths}" if shapes else stream)
    return "; ".join(parts)
