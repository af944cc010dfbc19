"""The TPU compiler's own estimate of a program's time, from the cycles that it writes beside it.

XLA for TPU notes ``estimated_cycles`` with every operation that it schedules. Their sum, loops
counted, is the time of one chip's computing without any wait for other chips.
"""

from __future__ import annotations

import re

from maestro_jax.planning.chips import Chip
from maestro_jax.planning.hlo import Program, parse_hlo

# Cycles a second. v4: Jouppi et al. 2023 (arXiv 2304.01433), table 4. The others: the peak by two
# operations of each cell of the chip's matrix units, 4 of 128 x 128 (v5e), 8 (v5p), and 4 of
# 256 x 256 (v6e) (https://jax-ml.github.io/scaling-book/tpus).
CLOCKS = {"v4": 1.05e9, "v5e": 1.50e9, "v5p": 1.75e9, "v6e": 1.75e9}

# What the compiler for v5p writes beside transfers that it cannot estimate.
_UNKNOWN = 2**63 - 1

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def compiler_seconds(module: str | Program, chip: Chip) -> float | None:
    """Seconds that one run of a program computes on a chip, by the compiler's reckoning.

    Args:
        module: The optimized module's text, or what `parse_hlo` made of it. A loop whose turns are
            not known before it runs counts once.
        chip: The kind of chip that it was compiled for.

    Returns:
        Seconds; None for a chip whose clock is not known.
    """
    if chip.name not in CLOCKS:
        return None
    program = parse_hlo(module) if isinstance(module, str) else module
    # What is fused is done within the estimate of its fusion.
    fused = {
        callee
        for instructions in program.computations.values()
        for instruction in instructions.values()
        if instruction.opcode == "fusion"
        for callee in instruction.called("calls")
    }
    cycles = sum(
        times * int(match[1])
        for computation, instruction, times in program.executed()
        if computation not in fused and (match := _CYCLES.search(instruction.attributes))
        if int(match[1]) != _UNKNOWN
    )
    return cycles / CLOCKS[chip.name]
