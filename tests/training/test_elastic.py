"""A run that continues on fewer devices takes the same batches in smaller parts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from maestro_jax.training import elastic
from maestro_jax.training.partitioning import Partitioning
from maestro_jax.training.trainer import Trainer, train


@pytest.mark.parametrize(
    ("mesh", "accumulate", "devices", "parts", "expected"),
    [
        # (data, fsdp, tensor) of the fitted mesh, and its microbatches; batches have 8 rows.
        ((-1, 1, 1), 1, 4, 0, ((4, 1, 1), 1)),
        ((-1, 1, 1), 1, 4, 8, ((4, 1, 1), 2)),
        ((-1, 1, 1), 2, 1, 8, ((1, 1, 1), 8)),
        ((4, 2, 1), 1, 4, 8, ((2, 2, 1), 2)),
        ((2, 2, 2), 1, 4, 4, ((1, 2, 2), 2)),
        ((2, 2, 2), 1, 8, 4, ((2, 2, 2), 1)),  # All of them again.
        ((-1, 1, 1), 4, 8, 8, ((8, 1, 1), 1)),
        ((-1, 1, 1), 1, 2, 100, ((2, 1, 1), 4)),  # More parts than rows.
    ],
)
def test_mesh_and_microbatches(toy, mesh, accumulate, devices, parts, expected):
    run = toy.run(partitioning=Partitioning(mesh_shape=mesh), accumulate=accumulate)
    fitted = elastic.fitted(run, devices, parts)
    assert (fitted.partitioning.shape(devices), fitted.accumulate) == expected
    assert fitted.batch_sizes == run.batch_sizes


def test_a_run_goes_on_with_fewer_devices(toy, tmp_path, monkeypatch):
    """As with all of them: the rows of a step are the same, and a device has no more at a time."""

    class WithoutDropout(toy.Objective):
        """Microbatches draw other masks."""

        def loss_terms(self, *arguments, train=True, **options):
            return super().loss_terms(*arguments, train=False, **options)

    common = {
        "partitioning": Partitioning(mesh_shape=(4, 2, 1)),
        "objective": WithoutDropout(),
        "elastic": True,
    }
    run = toy.run(**common)
    expected = train(run, tmp_path / "all", batches=toy.batches)
    train(toy.run(**common, steps=3), tmp_path / "fewer", batches=toy.batches)

    few = jax.devices()[:2]
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: few)
        trainer = Trainer(run, tmp_path / "fewer", batches=toy.batches)
        state = trainer.fit()
    assert dict(trainer.mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}
    assert trainer.run.accumulate == 4 and trainer.batch_parts == 8
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
