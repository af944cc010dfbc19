"""Estimates the FLOPs, the memory and the transfers of a step, without a compiler.

    trace = trace_step(run, {"speech": 4, "text": 4, "paired": 1})   # Rows of one device.
    memory = trace.memory((1, 256, 1))          # Bytes per device by part, on this mesh.
    transfers = trace.transfers((1, 256, 1))    # What one device sends, by kind and axis.

The real step is traced with the rows that one device gets of each stream; everything follows from
that trace and from the logical axes of the parameters:

- *State*: parameters, moments, average and gradients, each divided by the number of devices over
  which its axes are split.
- *Activations*: residuals that the forward pass keeps for the gradient, without those that
  checkpointing recomputes. They are split over rows only, an overestimate if a tensor axis splits
  features.
- *Workspace*: the products of one checkpointed layer, or the joint network's logits of one chunk,
  twice: values and gradients.
- *Transfers*: a parameter that is split over `fsdp` is gathered for each pass that uses it and once
  more for each gradient, which is scattered; over `data` gradients are reduced. A product whose
  inner axis is split over `tensor` is reduced. Operands are sent in the dtype in which they are
  multiplied; norms and biases are sent too, in float32. Outside of scanned layers XLA keeps what it
  gathered and reduces gradients without scattering them, which is the same number of bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend import core

from maestro_jax.batches import StreamConfig, batch_shapes
from maestro_jax.errors import UserError
from maestro_jax.flops import FlopCount, Product, count_flops
from maestro_jax.planning.collectives import sent_bytes
from maestro_jax.training import parameter_trees
from maestro_jax.training.partitioning import AXIS_NAMES, Partitioning
from maestro_jax.training.state import TrainState, abstract_state
from maestro_jax.training.step import train_step

MeshShape = tuple[int, int, int]
"""Devices along data, fsdp and tensor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What one device sends by one kind of collective along one axis in one step.

    Attributes:
        kind: One of `maestro_jax.planning.collectives.KINDS`.
        axis: The axis of the mesh.
        group: Devices along it.
        sent: Bytes that one device sends.
    """

    kind: str
    axis: str
    group: int
    sent: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimatedMemory:
    """Estimated bytes of one device, by purpose."""

    parameters: float
    optimizer: float
    average: float
    gradients: float
    batch: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(dataclasses.asdict(self).values())

    def by_part(self) -> dict[str, float]:
        """Returns bytes by part, largest first."""
        parts = dataclasses.asdict(self)
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTrace:
    """A traced step with the rows of one device.

    Attributes:
        rows: Rows of each stream.
        flops: FLOPs of the step.
        state: The abstract state, in boxes with logical axes.
        batch_bytes: Bytes of the rows.
        saved_bytes: Bytes of the residuals that the forward pass keeps for the gradient.
        accumulate: Number of microbatches into which the rows are split.
        partitioning: The partitioning rules of the run.
    """

    rows: Mapping[str, int]
    flops: FlopCount
    state: TrainState
    batch_bytes: float
    saved_bytes: float
    accumulate: int
    partitioning: Partitioning

    @property
    def parameters(self) -> int:
        """Number of parameters, trained and frozen."""
        return sum(
            math.prod(leaf.shape)
            for leaf in jax.tree.leaves(parameter_trees.unbox(self.state.params))
        )

    def memory(self, mesh: MeshShape) -> EstimatedMemory:
        """Estimates the bytes of one device on a mesh."""
        whole = self._sharded_bytes(self.state.params, mesh)
        products = _largest_by_part(self.flops)
        layers = sum(out for part, out in products.items() if not part.startswith("decoder"))
        joint = sum(out for part, out in products.items() if part.startswith("decoder"))
        return EstimatedMemory(
            parameters=whole,
            optimizer=self._sharded_bytes(self.state.opt_state, mesh),
            average=self._sharded_bytes(self.state.ema_params, mesh),
            # With microbatches, their sum and the gradients of one microbatch.
            gradients=whole * (2 if self.accumulate > 1 else 1),
            batch=self.batch_bytes,
            activations=self.saved_bytes,
            workspace=2 * max(layers, joint) / mesh[2],
        )

    def transfers(self, mesh: MeshShape) -> tuple[Transfer, ...]:
        """Estimates what one device sends on a mesh, largest first."""
        data, fsdp, tensor = mesh
        sums: dict[tuple[str, str], float] = defaultdict(float)
        reduced: dict[tuple[str, str], float] = defaultdict(float)
        products = _products_by_part(self.flops)
        abstract = self._abstract_mesh(mesh)
        for name, box in _boxed_leaves(self.state.params):
            leaf = parameter_trees.unbox(box)
            names = tuple(getattr(box, "names", ()))
            axes = _axes_of(self.partitioning, abstract, names, leaf.shape)
            parameter = parameter_trees.parameter_name(tuple(name.split("/")))
            module = parameter.rpartition("/")[0]
            stacked = names[:1] == ("layers",)
            one = math.prod(leaf.shape[1:] if stacked else leaf.shape)
            # Biases and norms are not part of any product.
            use = _Use.of(products[module] if leaf.ndim - stacked > 1 else {}, one)
            # Bytes of an array that is gathered over fsdp, and of its gradient, once per
            # microbatch; the tensor axis leaves a device its share.
            payload = math.prod(leaf.shape) * use.width / (tensor if "tensor" in axes else 1)
            payload *= self.accumulate
            if fsdp > 1 and "fsdp" in axes:
                gathers = use.forward + use.backward
                sums["all-gather", "fsdp"] += gathers * sent_bytes("all-gather", payload, fsdp)
                scattered = sent_bytes("reduce-scatter", payload, fsdp)
                sums["reduce-scatter", "fsdp"] += use.backward * scattered
                payload /= fsdp
            elif fsdp > 1:
                sums["all-reduce", "fsdp"] += use.backward * sent_bytes("all-reduce", payload, fsdp)
            if data > 1:
                sums["all-reduce", "data"] += use.backward * sent_bytes("all-reduce", payload, data)
            if tensor > 1 and "tensor" in axes and leaf.ndim - stacked > 1:
                if axes.index("tensor") - stacked == 0:
                    # The inner axis is split: results are partial sums, in the forward pass and
                    # once more in a checkpointed layer.
                    reduced["out", module] = use.results
                else:
                    # The outer axis is split: the gradient of the input is a partial sum. Those
                    # of products with the same input (query, key, value) are added up before.
                    parent = "in", module.rpartition("/")[0]
                    reduced[parent] = max(reduced[parent], use.inputs)
        sums["all-reduce", "tensor"] = sent_bytes("all-reduce", sum(reduced.values()), tensor)
        groups = dict(zip(AXIS_NAMES, mesh, strict=True))
        return tuple(
            Transfer(kind=kind, axis=axis, group=groups[axis], sent=sent)
            for (kind, axis), sent in sorted(sums.items(), key=lambda item: -item[1])
            if sent
        )

    def update_bytes(self, mesh: MeshShape) -> float:
        """Estimates what the optimizer reads and writes: the state twice, the gradients once."""
        state = sum(
            self._sharded_bytes(tree, mesh)
            for tree in (self.state.params, self.state.opt_state, self.state.ema_params)
        )
        return 2 * state + self._sharded_bytes(self.state.params, mesh)

    def _abstract_mesh(self, mesh: MeshShape) -> Any:
        return jax.sharding.AbstractMesh(mesh, AXIS_NAMES)

    def _sharded_bytes(self, tree: Any, mesh: MeshShape) -> float:
        abstract = self._abstract_mesh(mesh)
        total = 0.0
        for _, box in _boxed_leaves(tree):
            leaf = parameter_trees.unbox(box)
            names = tuple(getattr(box, "names", ()))
            axes = _axes_of(self.partitioning, abstract, names, leaf.shape)
            parts = math.prod(abstract.shape[axis] for axis in axes if axis)
            total += math.prod(leaf.shape) * leaf.dtype.itemsize / parts
        return total


def step_flops(
    model: Any,
    objective: Any,
    optimizer: Any,
    shapes: Mapping[str, Any],
    *,
    ema_decay: float | None = 0.9999,
    accumulate: int = 1,
) -> FlopCount:
    """Counts the FLOPs of the real training step: loss, gradient and update.

    Args:
        model: The Linen module.
        objective: The objective.
        optimizer: The optimizer's configuration.
        shapes: ``{stream: {feature: ShapeDtypeStruct}}``, the global batch; streams that have not
            begun are left out.
        ema_decay: Decay of the average of the parameters; None for no average.
        accumulate: Number of microbatches.
    """
    ema = ema_decay is not None
    state = parameter_trees.unbox(abstract_state(model, objective, optimizer, shapes, ema=ema))
    step = functools.partial(
        train_step,
        model=model,
        objective=objective,
        optimizer=optimizer,
        ema_decay=ema_decay,
        seed=0,
        accumulate=accumulate,
    )
    return count_flops(step, state, shapes)


def trace_step(run: Any, rows: Mapping[str, int]) -> StepTrace:
    """Traces a run's step with the rows of one device.

    Args:
        run: The `TrainRun`.
        rows: Rows of each stream that has begun; streams without rows are left out.

    Raises:
        UserError: If the number of microbatches does not divide the rows.
    """
    for name, count in rows.items():
        if count % run.accumulate:
            raise UserError(
                f"A device has {count} rows of the stream {name!r}, which accumulate="
                f"{run.accumulate} does not divide; use fewer devices along data and fsdp, or "
                "accumulate less."
            )
    streams: dict[str, StreamConfig] = {
        name: dataclasses.replace(run.streams[name].shapes()[-1], batch_size=count)
        for name, count in rows.items()
        if count
    }
    shapes = batch_shapes(streams)
    ema = run.ema_decay is not None
    state = abstract_state(run.model, run.objective, run.optimizer, shapes, ema=ema)
    flops = step_flops(
        run.model,
        run.objective,
        run.optimizer,
        shapes,
        ema_decay=run.ema_decay,
        accumulate=run.accumulate,
    )
    # The gradient is computed one microbatch at a time.
    microbatch = batch_shapes(
        {
            name: dataclasses.replace(each, batch_size=each.batch_size // run.accumulate)
            for name, each in streams.items()
        }
    )
    return StepTrace(
        rows=dict(rows),
        flops=flops,
        state=state,
        batch_bytes=float(
            sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        ),
        saved_bytes=_saved_bytes(run, parameter_trees.unbox(state), microbatch),
        accumulate=run.accumulate,
        partitioning=run.partitioning,
    )


def _saved_bytes(run: Any, state: TrainState, shapes: Any) -> float:
    """Counts the bytes that the forward pass keeps for the gradient, without the parameters."""

    def forward(params: Any, ema_params: Any, batch: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            return run.objective.loss(
                run.model,
                params,
                ema_params,
                batch,
                rng=jax.random.key(0),
                step=0,
                train=True,
            )

        _, gradient, _ = jax.vjp(loss, params, has_aux=True)
        return jax.tree.leaves(gradient)

    jaxpr = jax.make_jaxpr(forward)(state.params, state.ema_params, shapes).jaxpr
    inputs = set(jaxpr.invars)
    kept = {
        variable
        for variable in jaxpr.outvars
        if not isinstance(variable, core.Literal) and variable not in inputs
    }
    arrays: list[Any] = [variable.aval for variable in kept]
    return float(
        sum(
            math.prod(array.shape) * array.dtype.itemsize
            for array in arrays
            if not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
        )
    )


@dataclasses.dataclass(frozen=True)
class _Use:
    """The uses of a parameter in a step.

    Attributes:
        forward: Passes that read it: one per shape of its module's products.
        backward: Passes that have a gradient.
        width: Bytes per number in the products.
        results: Bytes of the results of forward passes, twice those of recomputed ones.
        inputs: Bytes of the gradients of the passes' inputs.
    """

    forward: int = 1
    backward: int = 1
    width: int = 4
    results: float = 0.0
    inputs: float = 0.0

    @classmethod
    def of(cls, phases: Mapping[str, list[Product]], numbers: int) -> _Use:
        """Derives the uses from the products of the parameter's module.

        Args:
            phases: The products, by phase.
            numbers: Size of the parameter, in one layer of a stack.
        """
        forward, backward = phases.get("forward", []), phases.get("backward", [])
        if not forward:
            return cls()
        # A pass has two products in its gradient, of equal FLOPs and bytes: that of the parameter,
        # which has the size of the parameter, and that of the input, unless the input is data.
        passes: dict[tuple[float, float], list[Product]] = defaultdict(list)
        for product in backward:
            passes[product.flops, product.bytes].append(product)
        own = (2 * numbers, 4 * numbers)
        rows = [
            next((p for p in pair if p.out not in own), pair[0])
            for pair in passes.values()
            if len(pair) > 1 or pair[0].out not in own
        ]
        return cls(
            forward=len(forward),
            backward=len(passes),
            width=2 if all(p.half for p in forward) else 4,
            results=sum(p.out * p.count for p in (*forward, *phases.get("recomputed", []))),
            inputs=sum(p.out * p.count for p in rows),
        )


def _products_by_part(flops: FlopCount) -> dict[str, dict[str, list[Product]]]:
    products: dict[str, dict[str, list[Product]]] = defaultdict(lambda: defaultdict(list))
    for product in flops.products:
        products[product.part][product.phase].append(product)
    return products


def _largest_by_part(flops: FlopCount) -> dict[str, float]:
    """Finds the largest result among the recomputed products of each part."""
    largest: dict[str, float] = {}
    for product in flops.products:
        if product.phase == "recomputed":
            largest[product.part] = max(largest.get(product.part, 0.0), product.out)
    return largest


def _boxed_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns names and boxes, or bare leaves, of a tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=parameter_trees.is_box)[0]
    return [("/".join(parameter_trees.path_keys(path)), leaf) for path, leaf in leaves]


def _axes_of(
    partitioning: Partitioning, mesh: Any, names: tuple[str | None, ...], shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Returns the mesh axis that splits each dimension of an array; empty if none does."""
    spec = partitioning.spec(mesh, names, shape, level=0)
    flat: list[str] = []
    for axes in spec:
        flat += [axes] if isinstance(axes, str) else list(axes or ("",))
    return tuple(flat)
