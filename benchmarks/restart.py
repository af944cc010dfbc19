"""Measures how long a run that is continued takes to its first step, from the start of its process.

    python benchmarks/restart.py                     # fine-tuning, pretraining, and at base size
    python benchmarks/restart.py --only finetune --data_dir demo_output/data

`maestro train` is started on MiniVox, stopped with SIGTERM after its first step, and the same
command started again: imports, restoring, opening the data, and loading the program from the
compilation cache, until the first step is done. Beside it stands the first start, which compiles.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from command import put_out
from rows import Bar, Row, Table
from step_speed import BATCHES
from timing import Timing, progress

BAR = Bar(limit=15.0, on="ours", at_most=True)
"""At tiny size on two cores."""
_ALL_STREAMS = {
    "TEXT_START_STEP": 0,
    "PAIRED_START_STEP": 0,
    "TRANSLATION_START_STEP": 0,
    "DIAGNOSTICS_EVERY": 0,
    "GRADIENTS_EVERY": 0,
}
PARTS = {
    "finetune": ("fine-tuning, tiny", ["runs/demo_finetune_asr.gin"], {"INIT_FROM": None}, BAR),
    "pretrain": ("pretraining, tiny", ["runs/demo_pretrain.gin"], _ALL_STREAMS, BAR),
    "base": (
        "pretraining, base",
        [
            "runs/pretrain.gin",
            "models/base.gin",
            "objectives/maestro.gin",
            "data/minivox_small.gin",
        ],
        {**_ALL_STREAMS, "STEPS": 1000, **dict.fromkeys(BATCHES, 1)},
        None,
    ),
}
"""What it is, gin files, bindings, and the bar of each part."""
_FIRST_STEP = re.compile(r"first step .*programs so far: (\d+) .*, (\d+) compiled")


def parse_arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=list(PARTS), action="append", help="run only this part; may be repeated"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of restarts (default 3)")
    parser.add_argument(
        "--data_dir",
        type=pathlib.Path,
        help="where MiniVox small is prepared; by default it is prepared in a directory of its own",
    )
    output = parser.add_mutually_exclusive_group()
    for option in ("json", "markdown", "update_docs"):
        output.add_argument(f"--{option}", action="store_true")
    arguments = parser.parse_args()
    if arguments.update_docs and arguments.only:
        parser.error("--update_docs writes all parts: leave --only out")
    return arguments


def start(command: list[str], cache: pathlib.Path, log: pathlib.Path) -> tuple[float, float, int]:
    """Starts a run, and stops it after its first step.

    Args:
        command: The command line.
        cache: Directory of the compilation cache.
        log: Where to write what it says.

    Returns:
        Seconds to the first step, seconds of processor time until then, and the number of programs
        that were compiled for it.
    """
    environment = {
        "JAX_PLATFORMS": "cpu",
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    took = busy = compiled = -1.0
    with process, log.open("w") as file:
        for line in process.stderr:
            now = time.monotonic() - began
            file.write(f"{now:7.2f} {line}")
            if (found := _FIRST_STEP.search(line)) is not None:
                took, busy, compiled = now, _processor_seconds(process.pid), int(found[2])
                process.send_signal(signal.SIGTERM)
    if took < 0 or process.returncode != 143:
        raise SystemExit(f"the run ended with status {process.returncode}:\n{log.read_text()}")
    return took, busy, int(compiled)


def _processor_seconds(pid: int) -> float:
    """Returns the processor time of a process so far, which says more on a busy machine."""
    # The 12th and 13th field after the name of the program, which is in parentheses.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(part: str, folder: pathlib.Path, data_dir: pathlib.Path, repeats: int) -> Row:
    """Measures one part, and returns its row."""
    what, files, bindings, bar = PARTS[part]
    words = [word for file in files for word in ("--gin_file", file)]
    words += [f"--gin.{name}={value}" for name, value in bindings.items()]
    words += ["--data_dir", str(data_dir), "--model_dir", str(folder / part)]
    command = [sys.executable, "-m", "maestro_jax.cli.main", "train", *words]
    progress(f"{what}: first start")
    first, *_ = start(command, folder / "xla", folder / f"{part}.log")
    restarts = []
    for number in range(repeats):
        progress(f"{what}: restart {number + 1} of {repeats}")
        restarts.append(start(command, folder / "xla", folder / f"{part}.log"))
    times, busy, compiled = zip(*restarts, strict=True)
    timing = Timing(times)
    return Row(
        what=what,
        size=f"{len(os.sched_getaffinity(0))} cores",
        ours=timing.best,
        unit="s",
        peer_name="first start",
        peer=first,
        ratio=first / timing.best,
        bar=bar,
        note=f"median {timing.median:.1f} s; {min(busy):.1f} s of processor time; "
        f"programs compiled: {max(compiled)}",
    )


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        data_dir = arguments.data_dir
        if data_dir is None:
            from maestro_jax.minivox import dataset

            data_dir = folder / "data"
            progress("preparing MiniVox small")
            dataset.prepare("small", data_dir)
        rows = [
            measure(part, folder, data_dir, arguments.repeats)
            for part in PARTS
            if part in (arguments.only or PARTS)
        ]
    table = Table("A restart to its first step, CPU", "times faster", tuple(rows))
    if not arguments.json and not arguments.markdown:
        print(f"{table.text()}\n", flush=True)
    put_out("restart", [table], arguments, ("jax", "jaxlib", "tensorflow"))


if __name__ == "__main__":
    main()
