"""Where the results of an evaluation lie, and the hypotheses while it runs.

Each checkpoint, weights and search has a directory of its own,
``MODEL_DIR/evaluation/<step>-<weights>-<search>``, such as ``2000-ema-beam4-lm0.3-1a2b3c``. In it
are, for each test set NAME:

- ``NAME.hypotheses.jsonl``: reference and hypothesis of each utterance;
- ``NAME.json`` and ``NAME.md``: scores, and how they came about;
- ``NAME.parts/``: hypotheses while the evaluation runs. Every process writes whole files of its
  own, since object stores cannot append; an interrupted evaluation reads them and goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maestro_jax.errors import RestartableError, UserError
from maestro_jax.evaluation.evaluate import DecodingStatistics
from maestro_jax.evaluation.predictions import Prediction, read_predictions, write_predictions
from maestro_jax.evaluation.processes import Processes
from maestro_jax.files import as_path, write_atomically
from maestro_jax.inference.search_config import SearchConfig

log = logging.getLogger(__name__)

SUBDIRECTORY = "evaluation"
_IDENTITY = "identity.json"
_SECONDS_BETWEEN_PARTS = 10.0
_HASH_DIGITS = 6


def search_settings(search: SearchConfig) -> dict[str, Any]:
    """Returns the settings of a search for JSON files; files with a hash of their content."""
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(search):
        value = getattr(search, field.name)
        is_file = value is not None and "Path" in str(field.type)
        settings[field.name] = str(value) if is_file else value
        if is_file:
            settings[f"{field.name}_sha256"] = _file_digest(as_path(value))
    # Tuples become lists, as they are when the settings are read back.
    return json.loads(json.dumps(settings))


def search_name(search: SearchConfig) -> str:
    """Returns a short name of a search: `greedy`, `beam4`, `beam4-lm0.3-1a2b3c`.

    Its last part is a hash of all settings, where any but the beam size is not the default.
    """
    parts = ["greedy" if search.beam_size == 1 else f"beam{search.beam_size}"]
    if search.lm_text is not None or search.lm_arpa is not None:
        parts.append(f"lm{search.lm_weight:g}")
    same_beam = SearchConfig(beam_size=search.beam_size)
    if search_settings(search) != search_settings(same_beam):
        text = json.dumps(search_settings(search), sort_keys=True)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS])
    return "-".join(parts)


def result_directory(
    model_dir: epath.PathLike, step: str, weights: str, search: SearchConfig
) -> epath.Path:
    """Returns the directory of the results of one checkpoint, weights and search."""
    name = f"{step}-{weights}-{search_name(search)}"
    return as_path(model_dir) / SUBDIRECTORY / name


def check_writable(directory: epath.PathLike) -> None:
    """Checks, before anything is decoded, that results can be written into a directory.

    Args:
        directory: Directory of the results, created if need be.

    Raises:
        UserError: It cannot be written.
    """
    path = as_path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Processes that start together read the same clock: a time would not tell them apart.
        probe = path / f".writable-{secrets.token_hex(8)}"
        write_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write the results into {path} ({error.strerror or error}); give --output_dir "
            "DIR"
        ) from error


class HypothesisFiles:
    """The hypotheses of one test set, shared by all processes of an evaluation.

    Every process must call the methods in the same order: `recover` and `collect` wait for all.

    Args:
        directory: Directory of the results, which all processes can read and write.
        name: Name of the test set.
        identity: What the hypotheses depend on, for JSON; those of another identity are not gone
            on with.
        processes: The processes of the evaluation.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        name: str,
        identity: Mapping[str, Any],
        processes: Processes,
    ) -> None:
        self.final = as_path(directory) / f"{name}.hypotheses.jsonl"
        self._parts = as_path(directory) / f"{name}.parts"
        self._processes = processes
        self._identity = json.loads(json.dumps(identity))
        # Names of another start are never the same, whatever its number of processes was.
        self._prefix = f"{time.time_ns():020d}-{processes.index:05d}"
        self._waiting: list[Prediction] = []
        self._written = 0
        self._last = time.monotonic()

    def recover(self, *, overwrite: bool = False) -> list[Prediction]:
        """Reads what an interrupted evaluation of the same identity left.

        Args:
            overwrite: Whether to throw it away.

        Raises:
            UserError: The directory cannot be written.
        """
        if self._processes.index == 0:
            known = self._saved_identity()
            if known is not None and (overwrite or known != self._identity):
                if not overwrite:
                    log.info(
                        "%s holds hypotheses of another %s: they are decoded anew",
                        self._parts,
                        ", ".join(_differences(known, self._identity)),
                    )
                self._parts.rmtree()
            try:
                self._parts.mkdir(parents=True, exist_ok=True)
                identity = json.dumps(self._identity, indent=1)
                write_atomically(self._parts / _IDENTITY, identity.encode())
                for path in self._parts.glob("*.statistics.json"):
                    path.unlink()
            except OSError as error:
                raise UserError(
                    f"cannot write {self._parts} ({error.strerror or error}); give --output_dir"
                ) from error
        self._processes.meet(f"{self._parts.name} can be written")
        return self._read()

    def add(self, prediction: Prediction) -> None:
        """Adds a hypothesis; it is on disk after 10 seconds at most, if decoding goes on."""
        self._waiting.append(prediction)
        if time.monotonic() - self._last > _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits; where that fails, it waits for the next time."""
        self._last = time.monotonic()
        if not self._waiting:
            return
        path = self._parts / f"{self._prefix}-{self._written:05d}.jsonl"
        try:
            write_predictions(self._waiting, path)
        except OSError as error:
            log.warning("cannot write %s (%s); trying again", path, error.strerror or error)
            return
        self._waiting, self._written = [], self._written + 1

    def collect(
        self, statistics: DecodingStatistics
    ) -> tuple[list[Prediction], DecodingStatistics] | None:
        """Waits until all processes have decoded their parts.

        Args:
            statistics: What this process's part took.

        Returns:
            On the first process, all hypotheses, and the statistics of all processes; None on the
            others.

        Raises:
            RestartableError: One of several processes cannot tell the first one its hypotheses.
        """
        self.flush()
        if self._processes.count == 1:
            return self._read() + self._waiting, DecodingStatistics.of_processes([statistics])
        if self._waiting:
            raise RestartableError(
                f"cannot write the hypotheses into {self._parts}: free some space, and start the "
                "same command again"
            )
        path = self._parts / f"{self._prefix}.statistics.json"
        write_atomically(path, json.dumps(dataclasses.asdict(statistics)).encode())
        self._processes.meet(f"{self._parts.name} are written")
        if self._processes.index:
            return None
        parts = [
            DecodingStatistics(**json.loads(path.read_text()))
            for path in sorted(self._parts.glob("*.statistics.json"))
        ]
        return self._read(), DecodingStatistics.of_processes(parts)

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """Writes all hypotheses into one file, in order, and removes the parts."""
        write_predictions(predictions, self.final)
        self._parts.rmtree()

    def _read(self) -> list[Prediction]:
        return [
            prediction
            for path in sorted(self._parts.glob("*.jsonl"))
            for prediction in read_predictions(path)
        ]

    def _saved_identity(self) -> dict[str, Any] | None:
        path = self._parts / _IDENTITY
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError:
            return {}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)] or ["evaluation"]


def _file_digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
