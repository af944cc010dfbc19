"""Counts the FLOPs of a program from its jaxpr: no device, no compiler, seconds for any size.

    count = count_flops(train_step, abstract_state, abstract_batch)
    count.model          # FLOPs of the algorithm; what a utilisation divides by
    count.hardware       # with what is computed twice to save memory
    count.by_part(1)     # {"shared_encoder": ..., "speech_encoder": ...}

Counted are products of matrices and convolutions, 2 FLOPs a multiplication and addition, as many
times as the loops that they stand in turn. Not counted is what is done element by element: norms,
activations, softmax, depthwise convolutions (which the modules write as shifts and additions), the
lattices, the optimizer; a utilisation of matrix units is about the former. `elementwise` tells how
many bytes the latter put out.

Recomputed are FLOPs in the scopes that `jax.checkpoint` names ``rematted_computation``, and those
of `RECOMPUTED`, which hand-written gradients name themselves.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

RECOMPUTED = "recomputed"
"""Scope, as in `jax.named_scope`, of what a gradient of our own computes a second time."""

Phase = Literal["forward", "backward", "recomputed"]

_RECOMPUTED_SCOPES = frozenset({"rematted_computation", RECOMPUTED})
OTHER = "objective"
"""The part of what belongs to no module: the losses themselves."""


@dataclasses.dataclass(frozen=True)
class Product:
    """Describes products of matrices, or convolutions, of one shape in one part of the program.

    Attributes:
        part: Path of the module, ``shared_encoder/stack/layers/attention/query``.
        phase: ``forward``, ``backward`` or ``recomputed``.
        flops: FLOPs of one.
        bytes: What one reads and writes if nothing is kept from one operation to the next.
        out: Bytes of its result.
        half: Whether its operands are of two bytes a number.
        count: How many there are, loops included.
    """

    part: str
    phase: Phase
    flops: float
    bytes: float
    out: float
    half: bool
    count: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Counts what a program computes, on all devices together.

    Attributes:
        products: All products and convolutions.
        elementwise_by_part: Bytes that operations of one element at a time put out; those of the
            optimizer are among what belongs to no module (`OTHER`).
        turns: Turns of all loops, one after the other: what is done in small steps takes its time
            on any device.
        loops_of_unknown_length: Parts with a loop whose trips are not known before it runs; they
            are counted once.
    """

    products: tuple[Product, ...]
    elementwise_by_part: Mapping[str, float]
    turns: float
    loops_of_unknown_length: tuple[str, ...] = ()

    def _sum(self, *phases: str) -> float:
        return sum(p.flops * p.count for p in self.products if p.phase in phases)

    @property
    def forward(self) -> float:
        """Returns the FLOPs of forward passes."""
        return self._sum("forward")

    @property
    def backward(self) -> float:
        """Returns the FLOPs of the gradient, without recomputation."""
        return self._sum("backward")

    @property
    def recomputed(self) -> float:
        """Returns the FLOPs of what is computed a second time to save memory."""
        return self._sum("recomputed")

    @property
    def model(self) -> float:
        """Returns the FLOPs of the algorithm, which a utilisation divides by."""
        return self._sum("forward", "backward")

    @property
    def hardware(self) -> float:
        """Returns all FLOPs, recomputation included."""
        return self.model + self.recomputed

    @property
    def bytes(self) -> float:
        """Returns the bytes read and written if nothing is kept from one product to the next."""
        return sum(p.bytes * p.count for p in self.products)

    @property
    def elementwise(self) -> float:
        """Returns the bytes that element-wise operations of the model's modules write."""
        return sum(size for part, size in self.elementwise_by_part.items() if part != OTHER)

    def by_part(self, depth: int = 1) -> dict[str, float]:
        """Returns model FLOPs by the first names of a part's path, largest first."""
        sums: Counter[str] = Counter()
        for product in self.products:
            if product.phase != "recomputed":
                name = "/".join(product.part.split("/")[:depth])
                sums[name] += product.flops * product.count  # type: ignore[assignment]
        return dict(sums.most_common())


def count_flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> FlopCount:
    """Counts the FLOPs of any function that JAX can trace.

    Args:
        function: The function.
        *args: Its arguments: arrays, or `jax.ShapeDtypeStruct`.
        **kwargs: Likewise.

    Returns:
        The count; what does not reach any output is left out, as a compiler would.
    """
    return count_jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs))


def count_jaxpr_flops(closed: core.ClosedJaxpr) -> FlopCount:
    """Counts the FLOPs of a function that has been traced, as `jax.jit(f).trace(...).jaxpr`.

    Args:
        closed: The jaxpr.

    Returns:
        The count, as `count_flops` returns it.
    """
    # Dead code is no work: a gradient nobody asks for, a metric that is not handed out.
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    walk = _Walk()
    walk.jaxpr(jaxpr, (), 1.0)
    products = tuple(
        Product(part, phase, flops, moved, out, half, count)
        for (part, phase, flops, moved, out, half), count in walk.products.items()
    )
    return FlopCount(
        products=products,
        elementwise_by_part=dict(walk.elementwise),
        turns=walk.turns,
        loops_of_unknown_length=tuple(sorted(walk.unknown)),
    )


class _Walk:
    """Sums over a jaxpr and all jaxprs in it."""

    def __init__(self) -> None:
        self.products: dict[tuple[str, Phase, float, float, float, bool], float] = defaultdict(
            float
        )
        self.elementwise: dict[str, float] = defaultdict(float)
        self.turns = 0.0
        self.unknown: set[str] = set()

    def jaxpr(self, jaxpr: Any, scopes: tuple[str, ...], times: float) -> None:
        for eqn in jaxpr.eqns:
            self.equation(eqn, (*scopes, str(eqn.source_info.name_stack)), times)

    def equation(self, eqn: Any, scopes: tuple[str, ...], times: float) -> None:
        name = eqn.primitive.name
        if name in _FLOPS:
            flops = _FLOPS[name](eqn)
            moved = sum(_bytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
            part, phase = part_and_phase("/".join(scopes))
            out = sum(_bytes(v.aval) for v in eqn.outvars)
            half = all(v.aval.dtype.itemsize <= 2 for v in eqn.invars)
            self.products[part, phase, flops, moved, out, half] += times
        elif name == "cond":
            # As many as the most expensive branch has.
            walks = []
            for branch in eqn.params["branches"]:
                walk = _Walk()
                walk.jaxpr(branch.jaxpr, scopes, times)
                walks.append(walk)
            self.add(max(walks, key=_Walk.total))
        elif name == "while":
            trips = _trips(eqn)
            if trips is None:
                self.unknown.add(part_and_phase("/".join(scopes))[0])
                trips = 1
            self.turns += times * trips
            self.jaxpr(eqn.params["body_jaxpr"].jaxpr, scopes, times * trips)
        else:
            inner = list(_inner_jaxprs(eqn.params))
            turns = float(eqn.params["length"]) if name == "scan" else 1.0
            if name == "scan":
                self.turns += times * turns
            if name == "shard_map":
                turns = float(eqn.params["mesh"].size)
            for jaxpr in inner:
                self.jaxpr(jaxpr, scopes, times * turns)
            if not inner and name not in _MOVES:
                part = part_and_phase("/".join(scopes))[0]
                self.elementwise[part] += times * sum(
                    _bytes(v.aval)
                    for v in eqn.outvars
                    if jnp.issubdtype(getattr(v.aval, "dtype", np.int32), np.inexact)
                )

    def total(self) -> float:
        return sum(flops * count for (_, _, flops, *_), count in self.products.items())

    def add(self, other: _Walk) -> None:
        for key, count in other.products.items():
            self.products[key] += count
        for part, size in other.elementwise.items():
            self.elementwise[part] += size
        self.turns += other.turns
        self.unknown |= other.unknown


# These compute nothing: they move numbers or say something about them.
_MOVES = frozenset(
    "broadcast_in_dim reshape transpose squeeze expand_dims slice dynamic_slice gather pad "
    "dynamic_update_slice concatenate copy copy_p iota rev split convert_element_type "
    "sharding_constraint optimization_barrier stop_gradient select_n".split()
)


def _dot_flops(eqn: Any) -> float:
    left = eqn.invars[0].aval.shape
    (contracted, _), _ = eqn.params["dimension_numbers"]
    inner = math.prod(left[axis] for axis in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * inner


def _convolution_flops(eqn: Any) -> float:
    """Counts products of a kernel element with an input element; padding and dilation have none.

    With that rule the gradients of a convolution have exactly as many as itself.
    """
    params = eqn.params
    numbers = params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    pairs = 1.0
    for i, (stride, (before, _), dilation, kernel_dilation) in enumerate(
        zip(
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ):
        size, width = left[numbers.lhs_spec[2 + i]], right[numbers.rhs_spec[2 + i]]
        length = out[numbers.out_spec[2 + i]]
        pairs *= window_pairs(size, width, length, stride, before, dilation, kernel_dilation)
    # Input features of one group times output features, for each row of the batch.
    features = right[numbers.rhs_spec[1]] * right[numbers.rhs_spec[0]]
    batch = left[numbers.lhs_spec[0]] // params["batch_group_count"]
    return 2.0 * batch * features * pairs


@functools.lru_cache(maxsize=256)
def window_pairs(
    size: int,
    width: int,
    length: int,
    stride: int,
    before: int,
    dilation: int,
    kernel_dilation: int,
) -> int:
    """Counts the products of a convolution along one axis: places of the kernel on real inputs.

    Args:
        size: Places of the input.
        width: Places of the kernel.
        length: Places of the result.
        stride: Places of the input from one window to the next.
        before: Places of padding before the input.
        dilation: Distance of two places of the input, zeros between them.
        kernel_dilation: Distance of two places of the kernel.
    """
    starts = np.arange(length) * stride - before
    # One position of the kernel at a time: gradients have kernels as long as an utterance.
    found = 0
    for offset in range(width) if width <= length else ():
        positions = starts + offset * kernel_dilation
        found += int(_real(positions, size, dilation).sum())
    if width > length:
        offsets = np.arange(width) * kernel_dilation
        for start in starts:
            found += int(_real(offsets + start, size, dilation).sum())
    return found


def _real(positions: np.ndarray, size: int, dilation: int) -> np.ndarray:
    inside = (positions >= 0) & (positions <= (size - 1) * dilation)
    return inside & (positions % dilation == 0)


_FLOPS: Mapping[str, Callable[[Any], float]] = {
    "dot_general": _dot_flops,
    "conv_general_dilated": _convolution_flops,
}


def _bytes(aval: Any) -> float:
    return float(math.prod(aval.shape)) * aval.dtype.itemsize


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _trips(eqn: Any) -> int | None:
    """Returns the trips of a loop between known bounds, as `fori_loop` writes it, else None."""
    condition = eqn.params["cond_jaxpr"].jaxpr
    body = eqn.params["body_jaxpr"].jaxpr
    constants = eqn.params["cond_nconsts"]
    start = constants + eqn.params["body_nconsts"]
    if [e.primitive.name for e in condition.eqns] != ["lt"]:
        return None
    if condition.outvars[0] is not condition.eqns[0].outvars[0]:
        return None

    def first(variable: Any) -> tuple[int | None, int | None]:
        """Returns the value of a number before the loop, and its place in the carry."""
        if isinstance(variable, core.Literal):
            return int(variable.val), None
        place = condition.invars.index(variable)
        given = eqn.invars[place if place < constants else place - constants + start]
        known = int(given.val) if isinstance(given, core.Literal) else None
        return known, place - constants if place >= constants else None

    (low, counter), (high, limit) = map(first, condition.eqns[0].invars)
    if low is None or high is None or counter is None:
        return None
    carried = body.invars[eqn.params["body_nconsts"] :]
    if limit is not None and body.outvars[limit] is not carried[limit]:
        return None
    for each in body.eqns:
        if each.outvars[0] is body.outvars[counter] and each.primitive.name == "add":
            by = [v.val for v in each.invars if isinstance(v, core.Literal)]
            if by and any(v is carried[counter] for v in each.invars):
                return max(0, math.ceil((high - low) / int(by[0])))
    return None


_TRANSFORMED = re.compile(r"^(?:\w+\()+(.*?)\)+$")


@functools.lru_cache(maxsize=65536)
def part_and_phase(scopes: str) -> tuple[str, Phase]:
    """Parses ``transpose(jvp(Model.encode))/encoder/layers.body/..`` to ``encoder/layers/..``."""
    names: list[str] = []
    recomputed = False
    backward = "transpose(" in scopes
    for scope in scopes.split("/"):
        name = scope
        if match := _TRANSFORMED.match(name):
            name = match[1]
        if name in _RECOMPUTED_SCOPES:
            recomputed = True
            continue
        # A module's method is written after its name, and the root has a class for a name.
        name = name.partition(".")[0]
        if not name or "->" in scope or name[:1].isupper() or name in names[-1:]:
            continue
        names.append(name)
    phase: Phase = "recomputed" if recomputed else "backward" if backward else "forward"
    return "/".join(names) or OTHER, phase
