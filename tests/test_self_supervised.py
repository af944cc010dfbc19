"""w2v-BERT and BEST-RQ learn what phonemes are: the whole experiment, as it is documented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# One to two hours on two cores: `make test-slow` runs it.
pytestmark = pytest.mark.slow


def test_both_learn_from_an_hour_of_untranscribed_speech(tmp_path: Path) -> None:
    output = tmp_path / "experiment"
    script = (
        "from maestro_jax.cli import environment\n"
        "environment.prepare_process()\n"
        "from maestro_jax.data.tensorflow_import import import_tensorflow\n"
        "import_tensorflow()\n"
        "from maestro_jax.experiments import self_supervised\n"
        f"self_supervised.run_self_supervised({str(output)!r})\n"
    )
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for expected in ("masked prediction", "shared 2", "random weights", "minutes"):
        assert expected in done.stdout
    record = json.loads((output / "self_supervised.json").read_text())
    assert set(record["found"]) == {"w2v-BERT", "BEST-RQ"}
    for name, found in record["found"].items():
        before, after = found["random weights"], found["trained"]
        metrics = after["metrics"]
        # Who always names the most frequent code is right in `masked_chance` of all cases.
        learned = 0.2 if name == "w2v-BERT" else 0.08
        assert metrics["masked_accuracy"] > metrics["masked_chance"] + learned, name
        assert metrics["masked_accuracy"] > 5 * before["metrics"]["masked_accuracy"], name
        assert metrics["code_usage"] > 0.5, name
        if name == "w2v-BERT":
            assert metrics["contrastive_accuracy"] > metrics["contrastive_chance"] + 0.3
            assert metrics["code_information"] > 0.5
        log_mel = after["probes"]["log-mel"]["share"]
        assert log_mel == before["probes"]["log-mel"]["share"]
        # Of 7000 frames a share has a standard error of 0.006.
        above_random, above_log_mel = (0.12, 0.07) if name == "w2v-BERT" else (0.17, 0.12)
        assert _best(after) > _best(before) + above_random, name
        assert _best(after) > log_mel + above_log_mel, name


def _best(found: dict[str, Any]) -> float:
    """The test accuracy of the block with the highest validation accuracy."""
    blocks = [probe for layer, probe in found["probes"].items() if layer != "log-mel"]
    return max(blocks, key=lambda probe: probe["validation"])["share"]
