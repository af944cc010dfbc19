"""Which chip of the planner's table a device of JAX is."""

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
    """The chip, by JAX's `device_kind`; None if the table has none.

    Args:
        device_kind: As `NVIDIA H100 80GB HBM3` or `TPU v5 lite`.
    """
    if device_kind in _TPUS:
        return CHIPS.get(_TPUS[device_kind])
    words = set(device_kind.replace("-", " ").split())

    def fits(chip: Chip) -> bool:
        """`A100-40` is an A100 with 40GB."""
        model, *memory = chip.name.split("-")
        return model in words and all(f"{gigabytes}GB" in words for gigabytes in memory)

    return next((c for c in CHIPS.values() if c.kind == "gpu" and fits(c)), None)
