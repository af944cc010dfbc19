"""Every script of launch/ is sound as far as reading it can tell."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing() -> None:
    beside = pathlib.Path(sys.executable).parent / "shellcheck"
    shellcheck = beside if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("there is no shellcheck (the dev extra has it)")
    done = subprocess.run(
        [shellcheck, "-x", "--source-path=SCRIPTDIR", *SCRIPTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_what_is_called_can_be_executed() -> None:
    called = {path.name for path in SCRIPTS if path.stat().st_mode & 0o100}
    assert called == {"local_run.sh", "tpu_run.sh", "tpu_host.sh"}
