"""Every `maestro train` and `maestro plan` that is shown somewhere describes a whole run."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest

from maestro_jax.cli.commands.plan import _planned_run
from maestro_jax.cli.main import COMMANDS, _parse
from maestro_jax.gin_utils import gin_config
from maestro_jax.planning.chips import parse_topology
from maestro_jax.planning.estimate import rows_of_a_device

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = [path for path in ROOT.glob("launch/**/*") if path.suffix in (".sh", ".sbatch", ".py")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(SCRIPTS)]
# What stands before the arguments of a run, and on how many devices the line runs them.
STARTS = {
    r"maestro train ": None,
    r"launch/tpu_run\.sh (?:train|babysit) .*?-- ": 64,
    r"sbatch --nodes=4 launch/slurm_train\.sbatch ": 32,
    r"maestro plan ": None,
}
PLACEHOLDERS = ("...", "ARGUMENTS", "DIR")
# A gin file, or a module that it imports, that a page gives a name and shows.
SHOWN_FILE = re.compile(
    r"`([\w/]+\.(?:gin|py))`[^`]*?:\n+```(?:gin|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


def shown() -> list[tuple[str, str, int | None]]:
    """Where a command stands, its words behind `maestro`, and its devices."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
    texts["--help"] = "\n".join(example for _, example in COMMANDS.values())
    found = []
    for name, text in texts.items():
        # Comments of scripts are commands, too; what is in backquotes ends with them.
        joined = re.sub(r" *\\\n#? *", " ", text)
        for start, devices in STARTS.items():
            for match in re.finditer(rf"(?:{start})(--[^\n`]*)", joined):
                words = shlex.split(match[1], comments=True)
                if not any(word.startswith(PLACEHOLDERS) for word in words):
                    command = "plan" if "plan" in start else "train"
                    found.append((name, shlex.join([command, *words]), devices))
    return found


def test_there_are_such_commands() -> None:
    pages = {page for page, _, _ in shown()}
    guides = ("launch", "plan", "pretrain", "finetune", "data", "scale")
    assert {f"docs/how_to/{name}.md" for name in guides} <= pages
    assert {"launch/slurm_train.sbatch", "--help"} <= pages
    assert {devices for _, _, devices in shown()} == {None, 64, 32}


@pytest.mark.parametrize(
    ("page", "command", "devices"), [pytest.param(*each, id=each[0]) for each in shown()]
)
def test_a_command_is_a_whole_run(
    page: str,
    command: str,
    devices: int | None,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left to be set, and the batches divide by the devices."""
    if page.endswith(".md"):
        for file, text in SHOWN_FILE.findall((ROOT / page).read_text(encoding="utf-8")):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
    name, arguments = _parse(shlex.split(command))
    if name == "plan":
        run = _planned_run(arguments)
        topology = parse_topology(arguments.topology, arguments.slices)
        rows_of_a_device(run, run.partitioning.shape(topology.devices))
        return
    bindings = dict(arguments.bindings)
    shown = [
        name for name in arguments.imports if pathlib.Path(f"{name.replace('.', '/')}.py").exists()
    ]
    run = gin_config.parse_and_build(arguments.gin_file, bindings, shown)
    if devices is not None:
        rows_of_a_device(run, run.partitioning.shape(devices))
