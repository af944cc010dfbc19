"""The compiled programs of the training step: one for each shape of its batch."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from maestro_jax.flops import count_jaxpr_flops
from maestro_jax.objectives.base import Controls
from maestro_jax.training.run import TrainRun
from maestro_jax.training.state import TrainState
from maestro_jax.training.step import describe_shapes, jit_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A compiled training step.

    Attributes:
        run: Function of state, batch and controls that returns the next state and metrics.
        flops: Model FLOPs of a step.
    """

    run: Callable[[TrainState, Any, Controls], tuple[TrainState, Any]]
    flops: float


class StepPrograms:
    """Compiles the training step when a shape of its batch is new.

    Args:
        run: The run.
        mesh: The device mesh.
        shardings: Shardings of the state.
    """

    def __init__(self, run: TrainRun, mesh: Mesh, shardings: TrainState) -> None:
        self._run, self._mesh = run, mesh
        self._step = jit_train_step(run, mesh, shardings)
        self._programs: dict[str, StepProgram] = {}
        self._ahead: tuple[str, concurrent.futures.Future[StepProgram]] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compile")

    def __contains__(self, shapes: str) -> bool:
        """Returns whether a batch of these shapes has been asked for."""
        return shapes in self._programs

    def compile_ahead(self, state: TrainState, controls: Controls, streams: Sequence[str]) -> None:
        """Begins to compile the next step in the background, if its shapes are known.

        A restart finds the program in the compilation cache, and reads it while data are opened. A
        stream with buckets has one of several shapes, so that nothing is begun.

        Args:
            state: The state, or its shapes.
            controls: Controls of the step.
            streams: The streams that the objective reads at that step, of which the run may have
                only some.
        """
        read = [name for name in self._run.used_streams if name in streams]
        if any(self._run.streams[name].buckets for name in read):
            return
        rows = self._run.partitioning.batch_sharding(self._mesh)
        batch: Any = {
            name: {
                feature: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=rows)
                for feature, shape in features.items()
            }
            for name, features in self._run.batch_shapes().items()
            if name in read
        }
        shapes = describe_shapes(batch)
        self._ahead = shapes, self._thread.submit(self._compile, state, batch, controls)

    def get(self, state: TrainState, batch: Any, controls: Controls) -> StepProgram:
        """Returns the program for a batch, and compiles it if its shapes are new.

        Args:
            state: The state.
            batch: ``{stream: {feature: array}}``, global arrays on the mesh.
            controls: Controls of the step.
        """
        shapes = describe_shapes(batch)
        if shapes not in self._programs:
            log.info("compiling the training step of shape %d: %s", len(self._programs) + 1, shapes)
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == shapes:
                self._programs[shapes] = ahead[1].result()
            else:
                self._programs[shapes] = self._compile(state, batch, controls)
        return self._programs[shapes]

    def close(self) -> None:
        """Waits for what is compiled in the background."""
        self._thread.shutdown()

    def _compile(self, state: TrainState, batch: Any, controls: Controls) -> StepProgram:
        # Of this thread: rules and mesh hold for the thread that sets them.
        with self._run.partitioning.activate(self._mesh):
            traced = self._step.trace(state, batch, controls)
            program = traced.lower().compile()
        return StepProgram(program, count_jaxpr_flops(traced.jaxpr).model)
