"""Measures reading speed and padding against lhotse and Hugging Face datasets.

    python benchmarks/input_pipeline.py                # some minutes
    python benchmarks/input_pipeline.py --minutes 5    # less speech
    python benchmarks/input_pipeline.py --json

All contenders read the same utterances in one run: from shards of `maestro prepare`, and from ogg
(16 kHz, as VoxPopuli) and mp3 files (48 kHz, as Common Voice). Each runs in its own process on one
core, and they take turns; the speed is that of the best round. Padding is the length of the batches
divided by the length of the speech in them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile

import audio_files
from rows import Row, Table
from timing import Contender, ContenderError, machine, progress, take_turns

PREPARED, ONE_SHAPE = "prepared", "prepared, one shape"
OURS = "maestro_jax"
PEERS = ("lhotse", "datasets")
CONTENDERS = (
    (OURS, PREPARED),
    (OURS, ONE_SHAPE),
    *((who, what) for what in audio_files.CONTAINERS for who in (OURS, *PEERS)),
)
# Epochs per run, so that what is read ahead between runs does not count.
PASSES = {PREPARED: 20, ONE_SHAPE: 20, "ogg": 2, "mp3": 2}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Result of a contender.

    Attributes:
        speed: Hours of speech a second and core.
        median: The same of the median round.
        padding: Padded by real length.
    """

    speed: float
    median: float
    padding: float


def parse_arguments() -> argparse.Namespace:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="minutes of speech (default 20)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="number of timed rounds (default 3)")
    parser.add_argument(
        "--directory", help="directory that keeps the speech; otherwise it is deleted"
    )
    parser.add_argument(
        "--peers_python",
        default=os.environ.get("MAESTRO_PEERS_PYTHON", sys.executable),
        help="Python interpreter with lhotse and datasets; by default $MAESTRO_PEERS_PYTHON, "
        "else this one",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.minutes <= 0:
        parser.error("--repeats must be at least 1, and --minutes above 0")
    return arguments


def measure(
    directory: pathlib.Path, minutes: float, repeats: int, peers_python: str
) -> tuple[dict[tuple[str, str], Reading], list[str]]:
    """Runs all contenders.

    Args:
        directory: Where the speech is, or is to be.
        minutes: How much speech.
        repeats: Rounds that count.
        peers_python: Runs the peers.

    Returns:
        What each did, by who and what; and what could not be measured.
    """
    progress("speaking, encoding and preparing")
    corpus = audio_files.write(directory, minutes)
    progress(f"  {corpus['utterances']} utterances, {corpus['seconds'] / 60:.1f} minutes")
    remarks: list[str] = []
    with contextlib.ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for who, what in CONTENDERS:
            job = {
                "who": who,
                "what": what,
                "directory": str(directory),
                "corpus_seconds": corpus["seconds"],
                "seconds": corpus["seconds"] * PASSES[what],
            }
            python = sys.executable if who == OURS else peers_python
            try:
                contender = Contender("audio_readers", job, cores=1, python=python)
            except ContenderError as error:
                if not error.missing:
                    raise
                remarks.append(f"{who} was not measured with {what}: {error}")
                progress(f"  {remarks[-1]}")
                continue
            contenders[f"{who}\t{what}"] = stack.enter_context(contender)
        progress(f"  {repeats} repeats of {len(contenders)} contenders")
        times = take_turns(contenders, repeats)
    readings = {}
    for name, timing in times.items():
        who, what = name.split("\t")
        report = contenders[name].report
        hours = report["seconds"] / 3600
        readings[who, what] = Reading(hours / timing.best, hours / timing.median, report["padding"])
    return readings, remarks


def tables(readings: dict[tuple[str, str], Reading], remarks: list[str]) -> list[Table]:
    """Returns the table of speed and padding."""
    speed, padding = [], []
    for what in (PREPARED, ONE_SHAPE, *audio_files.CONTAINERS):
        ours = readings[OURS, what]
        peers = [who for who in PEERS if (who, what) in readings]
        for who in peers or [""]:
            peer = readings.get((who, what))
            note = f"median {ours.median:.3g}" + (f" and {peer.median:.3g}" if peer else "")
            speed.append(
                Row(
                    what="speech read",
                    size=what,
                    ours=ours.speed,
                    unit="hours/s/core",
                    peer_name=who,
                    peer=peer.speed if peer else None,
                    ratio=ours.speed / peer.speed if peer else None,
                    note=note,
                )
            )
    for what in (PREPARED, ONE_SHAPE):
        peers = [who for who in PEERS if (who, "ogg") in readings]
        for who in peers or [""]:
            peer = readings.get((who, "ogg"))
            padding.append(
                Row(
                    what="padded by real length",
                    size="five shapes" if what == PREPARED else "one shape",
                    ours=readings[OURS, what].padding,
                    unit="x",
                    peer_name=who,
                    peer=peer.padding if peer else None,
                    ratio=readings[OURS, what].padding / peer.padding if peer else None,
                    note="the peer's shapes change with every batch" if peer else "",
                )
            )
    return [
        Table("Reading speech, one core", "times faster", tuple(speed), tuple(remarks)),
        Table("Padding", "ours / peer", tuple(padding)),
    ]


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    with contextlib.ExitStack() as stack:
        directory = arguments.directory or stack.enter_context(tempfile.TemporaryDirectory())
        readings, remarks = measure(
            pathlib.Path(directory).resolve(),
            arguments.minutes,
            arguments.repeats,
            arguments.peers_python,
        )
    printed = tables(readings, remarks)
    if arguments.json:
        content = {"machine": machine(), "tables": [table.as_json() for table in printed]}
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif arguments.markdown:
        print("\n\n".join(table.markdown() for table in printed))
    else:
        print("\n\n".join(table.text() for table in printed))
        print(machine())


if __name__ == "__main__":
    main()
