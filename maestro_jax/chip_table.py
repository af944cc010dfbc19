"""Lists the properties of accelerators, with their sources.

Figures are per chip, in bytes, bytes per second and FLOPs per second. Bandwidths are those of one
direction: half of the figure if a vendor states both directions together. `sources` of each chip
names the pages; sources of several chips are:

- `Cloud TPU <https://docs.cloud.google.com/tpu/docs/tpu7x>`_: the page of each generation, tables
  "Key specifications" (peak, HBM, ICI per chip in both directions, DCN per chip, valid slices).
- `How to Scale Your Model <https://jax-ml.github.io/scaling-book/tpus>`_: ICI of one link in one
  direction, which axes wrap around, and about 25 GB/s of DCN per host.
- Usable memory of TPUs: what libtpu 0.0.42 calls "available HBM" when it refuses a program that is
  too large; `tests/planning/test_chips.py` verifies it.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
        name: Name that users write.
        kind: ``tpu`` or ``gpu``.
        peak_flops: Dense bfloat16 FLOPs per second.
        hbm_bytes: Nominal memory.
        usable_hbm_bytes: Memory that a program may use.
        hbm_bandwidth: Bytes per second.
        link_bandwidth: Bytes per second in one direction: of one link to one neighbour of the torus
            (TPU), or from a GPU into the switch that joins those of its machine.
        dcn_bandwidth: Bytes per second in one direction between slices or machines, per chip.
        torus: Dimensions of the torus; 0 for GPUs behind a switch.
        chips_per_host: Chips per machine in slices of several machines.
        max_slice: Chips of the largest slice.
        devices_per_chip: JAX devices per chip.
        achievable: Share of the peak that large public models reach with matrices of the same kind;
            the roofline's ceiling.
        libtpu: Name that the TPU compiler knows it by; empty for GPUs.
        aliases: Other names that are understood.
        sources: Addresses of the sources.
    """

    name: str
    kind: str
    peak_flops: float
    hbm_bytes: float
    usable_hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    torus: int
    chips_per_host: int
    max_slice: int
    devices_per_chip: int = 1
    achievable: float
    libtpu: str = ""
    aliases: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


_MAXTEXT = (
    "https://github.com/AI-Hypercomputer/maxtext/tree/main/MaxText/configs/",
    "https://maxtext.readthedocs.io/en/latest/reference/models/tiering.html",
)

# GPUs: XLA may take what XLA_PYTHON_CLIENT_MEM_FRACTION says, .75 by default; with .9, CUDA and
# NCCL have room beside it (https://docs.jax.dev/en/latest/gpu_memory_allocation.html).
_GPU_FRACTION = 0.9


def _gpu(
    name: str,
    *,
    gigabytes: float,
    peak_flops: float,
    hbm_bandwidth: float,
    nvlink_both_ways: float,
    network_gigabits: float,
    achievable: float,
    sources: tuple[str, ...],
    aliases: tuple[str, ...] = (),
) -> Chip:
    return Chip(
        name=name,
        kind="gpu",
        peak_flops=peak_flops,
        hbm_bytes=gigabytes * 1e9,
        usable_hbm_bytes=gigabytes * 1e9 * _GPU_FRACTION,
        hbm_bandwidth=hbm_bandwidth,
        link_bandwidth=nvlink_both_ways / 2,
        dcn_bandwidth=network_gigabits * 1e9 / 8,
        torus=0,
        chips_per_host=8,
        max_slice=8,
        achievable=achievable,
        aliases=aliases,
        sources=sources,
    )


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="tpu",
            peak_flops=275e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=30.75 * GIB,
            hbm_bandwidth=1.2e12,
            link_bandwidth=4.5e10,
            # 25 GB/s a host of four chips.
            dcn_bandwidth=6.25e9,
            torus=3,
            chips_per_host=4,
            max_slice=4096,
            # 22B on 64 chips; 8 slices of as many reach 0.53.
            achievable=0.567,
            libtpu="v4",
            sources=("https://docs.cloud.google.com/tpu/docs/v4", _MAXTEXT[0] + "v4"),
        ),
        Chip(
            name="v5e",
            kind="tpu",
            peak_flops=197e12,
            hbm_bytes=16 * GIB,
            usable_hbm_bytes=15.75 * GIB,
            hbm_bandwidth=819e9,
            # 400 GB/s in both directions over four ports.
            link_bandwidth=5e10,
            # 6.4 Tb/s a pod of 256.
            dcn_bandwidth=6.4e12 / 8 / 256,
            torus=2,
            chips_per_host=4,
            max_slice=256,
            # 16B on 256 chips; 32 slices of as many reach 0.55.
            achievable=0.611,
            libtpu="v5e",
            aliases=("v5litepod", "v5lite"),
            sources=("https://docs.cloud.google.com/tpu/docs/v5e", _MAXTEXT[0] + "v5e"),
        ),
        Chip(
            name="v5p",
            kind="tpu",
            peak_flops=459e12,
            hbm_bytes=95.74 * GIB,
            usable_hbm_bytes=95.74 * GIB,
            hbm_bandwidth=2765e9,
            # 1200 GB/s in both directions over six ports.
            link_bandwidth=1e11,
            # 50 Gb/s a chip.
            dcn_bandwidth=50e9 / 8,
            torus=3,
            chips_per_host=4,
            max_slice=6144,
            # 64B and 128B on 64 to 256 chips: 0.70 and 0.69.
            achievable=0.69,
            libtpu="v5",
            aliases=("v5",),
            sources=("https://docs.cloud.google.com/tpu/docs/v5p", _MAXTEXT[0] + "v5p"),
        ),
        Chip(
            name="v6e",
            kind="tpu",
            peak_flops=918e12,
            hbm_bytes=32 * GIB,
            usable_hbm_bytes=31.24 * GIB,
            hbm_bandwidth=1638e9,
            # 800 GB/s in both directions over four ports.
            link_bandwidth=1e11,
            # 100 Gb/s a chip.
            dcn_bandwidth=100e9 / 8,
            torus=2,
            chips_per_host=4,
            max_slice=256,
            # Llama 3.1 8B on 256 chips; 70B reaches 0.50.
            achievable=0.4546,
            libtpu="v6e",
            aliases=("trillium",),
            sources=("https://docs.cloud.google.com/tpu/docs/v6e", _MAXTEXT[1]),
        ),
        Chip(
            name="tpu7x",
            kind="tpu",
            peak_flops=2307e12,
            hbm_bytes=192 * GIB,
            # Two devices.
            usable_hbm_bytes=2 * 94.74 * GIB,
            hbm_bandwidth=7380e9,
            # 1200 GB/s in both directions over six ports.
            link_bandwidth=1e11,
            # 100 Gb/s a chip.
            dcn_bandwidth=100e9 / 8,
            torus=3,
            chips_per_host=4,
            max_slice=9216,
            devices_per_chip=2,
            # No public figure of training in bfloat16: that of v6e.
            achievable=0.4546,
            libtpu="tpu7x",
            aliases=("ironwood", "v7x", "v7"),
            sources=("https://docs.cloud.google.com/tpu/docs/tpu7x",),
        ),
        _gpu(
            "A100-40",
            gigabytes=40,
            peak_flops=312e12,
            hbm_bandwidth=1555e9,
            nvlink_both_ways=600e9,
            # DGX A100: eight ConnectX-6 of 200 Gb/s.
            network_gigabits=200,
            achievable=0.52,
            sources=(
                "https://images.nvidia.com/aem-dam/en-zz/Solutions/data-center/"
                "nvidia-ampere-architecture-whitepaper.pdf",
                # 0.52 of the peak without sparsity at 175B to 1T parameters, 0.44 to 0.47 at
                # 1.7B to 7.5B.
                "https://arxiv.org/abs/2104.04473",
            ),
        ),
        _gpu(
            "A100-80",
            gigabytes=80,
            peak_flops=312e12,
            hbm_bandwidth=2039e9,
            nvlink_both_ways=600e9,
            network_gigabits=200,
            achievable=0.52,
            aliases=("A100",),
            sources=(
                "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
                "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
                "https://arxiv.org/abs/2104.04473",
            ),
        ),
        _gpu(
            "H100",
            gigabytes=80,
            # SXM, without sparsity.
            peak_flops=989e12,
            hbm_bandwidth=3350e9,
            nvlink_both_ways=900e9,
            # DGX H100: eight ConnectX-7 of 400 Gb/s.
            network_gigabits=400,
            # Llama 3 405B on 8,000 to 16,000 GPUs: 0.43 and 0.41.
            achievable=0.43,
            sources=(
                "https://www.nvidia.com/en-us/data-center/h100/",
                "https://arxiv.org/abs/2407.21783",
            ),
        ),
        _gpu(
            "H200",
            gigabytes=141,
            peak_flops=989e12,
            hbm_bandwidth=4800e9,
            nvlink_both_ways=900e9,
            network_gigabits=400,
            # That of the H100, whose compute it has.
            achievable=0.43,
            sources=("https://www.nvidia.com/en-us/data-center/h200/",),
        ),
        _gpu(
            "B200",
            # DGX B200: 1,440 GB and 14.4 TB/s of NVLink for eight.
            gigabytes=180,
            peak_flops=2250e12,
            hbm_bandwidth=8000e9,
            nvlink_both_ways=1800e9,
            network_gigabits=400,
            # No public figure of training in bfloat16: that of the H100.
            achievable=0.43,
            sources=(
                "https://docs.nvidia.com/dgx/dgxb200-user-guide/introduction-to-dgxb200.html",
            ),
        ),
    )
}
"""All chips by name."""

_TPU_KINDS = {
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
    """Looks a chip up by the `device_kind` of a JAX device.

    Args:
        device_kind: Such as ``NVIDIA H100 80GB HBM3`` or ``TPU v5 lite``.

    Returns:
        The chip; None if the table does not have it, as for CPUs and PCIe cards.
    """
    if device_kind in _TPU_KINDS:
        return CHIPS.get(_TPU_KINDS[device_kind])
    words = set(device_kind.replace("-", " ").split())
    if "PCIe" in words:
        # Slower than the SXM modules whose figures the table has.
        return None

    def matches(chip: Chip) -> bool:
        # `A100-40` is an A100 with 40GB.
        model, *memory = chip.name.split("-")
        return model in words and all(f"{gigabytes}GB" in words for gigabytes in memory)

    return next((c for c in CHIPS.values() if c.kind == "gpu" and matches(c)), None)
