"""Finds the chip of a JAX device in the planner's table."""

from __future__ import annotations

from maestro_jax.planning.chips import CHIPS, Chip

_TPUS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip for a `device_kind` of JAX; None if the table does not have it.

    Args:
        device_kind: As `NVIDIA H100 80GB HBM3` or `TPU v5 lite`.
    """
    if device_kind in _TPUS:
        return CHIPS.get(_TPUS[device_kind])
    words = set(device_kind.replace("-", " ").split())

    def fits(chip: Chip) -> bool:
        """Splits the memory from a name: `A100-40` is an A100 with 40 GB."""
        model, *memory = chip.name.split("-")
        return model in words and all(f"{gigabytes}GB" in words for gigabytes in memory)

    return next((c for c in CHIPS.values() if c.kind == "gpu" and fits(c)), None)
