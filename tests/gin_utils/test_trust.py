"""Files of somebody else import and call nothing that the user has not named."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pathlib
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

from maestro_jax.cli.main import main
from maestro_jax.errors import UserError
from maestro_jax.gin_utils import gin_config, gin_source, trust, user_modules

DYNAMIC = "from __gin__ import dynamic_registration\n"
MODEL = DYNAMIC + "from maestro_jax.modules import maestro\n"
CHECKPOINTS = DYNAMIC + "from maestro_jax.training import checkpoints\n"
WHOLE = ["runs/demo_pretrain.gin"]


@pytest.fixture(autouse=True)
def hostile(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A directory with a module that leaves a trace when it is imported, on Python's path."""
    trace = "import os, pathlib\npathlib.Path(__file__).with_name('trace').touch()\n"
    (tmp_path / "payload.py").write_text(trace + "def call(): pass\n")
    # An optional package that is not installed.
    (tmp_path / "num2words.py").write_text(trace)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(user_modules, "_named", {})
    yield
    sys.modules.pop("payload", None)
    importlib.invalidate_caches()


def refused(text: str, imports: tuple[str, ...] = ()) -> str:
    pathlib.Path("theirs.gin").write_text(text)
    with pytest.raises(UserError) as caught:
        gin_config.parse([*WHOLE, "theirs.gin"], imports=imports)
    assert not pathlib.Path("trace").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import payload\n", "theirs.gin:1: imports payload, which is not of maestro_jax"),
        ("\nimport payload as os\n", "theirs.gin:2: imports payload"),
        ("import os\n", "imports os, which"),
        ("from os import path\n", "imports os.path, which"),
        ("import maestro_jax_evil\n", "imports maestro_jax_evil, which"),
        (DYNAMIC + "import subprocess\nSEED = @subprocess.run()\n", "imports subprocess, which"),
        # What a module of this package has imported is not its own.
        (
            DYNAMIC + "import maestro_jax.files\nSEED = @maestro_jax.files.os.system()\n",
            "os.system",
        ),
        (DYNAMIC + "from maestro_jax import files\nfiles.os.system.command = 'ls'\n", "os.system"),
        (
            DYNAMIC + "from maestro_jax import files as f\nf.shutil.rmtree:\n  path = '/'\n",
            "rmtree",
        ),
        # Functions of this package write files too.
        (
            DYNAMIC + "from maestro_jax import files\nSEED = @files.write_atomically()\n",
            "names maestro",
        ),
        (
            DYNAMIC + "from maestro_jax.cli import main\nSEED = @main.main()\n",
            "cli.main.main, which",
        ),
        (
            DYNAMIC
            + "from maestro_jax.training import checkpoints\nSEED = @checkpoints.Checkpoints()\n",
            "checkpoints.Checkpoints, which gin files may not",
        ),
        (
            DYNAMIC
            + "from maestro_jax.modules import maestro\nSEED = [{'a': @s/maestro.jax.jit()}]\n",
            "maestro.jax.jit, which",
        ),
        (
            MODEL + "SEED = @maestro.Maestro.apply\n",
            "apply",
        ),
        ("include 'gs://bucket/theirs.gin'\n", "theirs.gin:1: includes gs://bucket"),
        ("include '/etc/hostname'\n", "theirs.gin:1: includes /etc/hostname"),
        ("include '~/.bashrc'\n", "theirs.gin:1: includes ~/.bashrc"),
    ],
)
def test_hostile_files_are_refused_before_anything_runs(text: str, message: str) -> None:
    assert message in refused(text)


def test_an_included_file_is_checked_too() -> None:
    pathlib.Path("inner.gin").write_text("import payload\n")
    assert "inner.gin:1: imports payload" in refused("include 'inner.gin'\n")


def test_a_module_that_is_allowed_may_not_lend_what_it_imports() -> None:
    text = DYNAMIC + "import payload\nSEED = @payload.os.system()\n"
    pathlib.Path("theirs.gin").write_text(text)
    with pytest.raises(UserError, match=r"payload.os.system, which gin files may not"):
        gin_config.parse([*WHOLE, "theirs.gin"], imports=["payload"])
    pathlib.Path("theirs.gin").write_text(DYNAMIC + "import payload\nSEED = @payload.call()\n")
    gin_config.parse([*WHOLE, "theirs.gin"], imports=["payload"])


@pytest.mark.parametrize("allow", ["option", "parent", "variable"])
def test_the_user_allows_a_module(allow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pathlib.Path("lab").mkdir()
    pathlib.Path("lab/payload.py").touch()
    pathlib.Path("theirs.gin").write_text("import lab.payload\n")
    if allow == "variable":
        monkeypatch.setenv(trust.ALLOWED_IMPORTS_VARIABLE, "other, lab")
    else:
        user_modules.import_user_modules(["lab.payload" if allow == "option" else "lab"])
    gin_config.parse([*WHOLE, "theirs.gin"])
    assert "import lab.payload" in gin_config.config_text()


def test_commands_refuse_a_hostile_model_directory(capsys: pytest.CaptureFixture[str]) -> None:
    pathlib.Path("model").mkdir()
    pathlib.Path("model/config.gin").write_text("import payload\nSTEPS = 3\n")
    for command in (
        ["train", "--dry_run", "--gin_file", "model/config.gin"],
        ["eval", "--model_dir", "model"],
        ["tune", "model"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "--import payload" in error, error
    assert not pathlib.Path("trace").exists()


def test_a_directory_provides_no_optional_packages() -> None:
    """Commands are started in the directory that somebody has sent."""
    code = (
        "import pathlib\n"
        "from maestro_jax.gin_utils import gin_config\n"
        "gin_config.parse(['runs/demo_pretrain.gin'])\n"
        "from maestro_jax.text import normalizers\n"
        "try:\n"
        "    __import__('num2words')\n"
        "except ModuleNotFoundError:\n"
        "    pass\n"
    )
    program = pathlib.Path("elsewhere") / "maestro"
    program.parent.mkdir()
    program.write_text(code)  # As the console script: its own directory is first on the path.
    subprocess.run([sys.executable, program], check=True, env=_plain_environment())
    assert not pathlib.Path("trace").exists()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_gin_reads_the_text_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    path = pathlib.Path("theirs.gin")
    path.write_text("SEED = 5\n")
    check = trust.check_imports

    def swapped(*arguments: Any) -> None:
        check(*arguments)
        path.write_text("import payload\n")

    monkeypatch.setattr(trust, "check_imports", swapped)
    gin_config.parse([*WHOLE, "theirs.gin"])
    assert "SEED = 5" in gin_config.config_text() and not pathlib.Path("trace").exists()


def _configurables() -> set[type]:
    found: set[type] = set()
    for name in trust.CONFIGURABLE_MODULES:
        module = importlib.import_module(name)
        below = pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}.")
        for each in (module, *(importlib.import_module(info.name) for info in below)):
            classes = (value for value in vars(each).values() if inspect.isclass(value))
            found |= {value for value in classes if trust.may_be_named(value)}
    return found


def test_all_names_of_shipped_files_may_be_named() -> None:
    source = gin_source.Source()
    for name in gin_source.shipped_files():
        source.read(gin_source.find_file(name))
    assert len(source.named) > 30
    trust.check_imports(source)
    trust.check_names(source)


def test_what_may_be_named_constructs_nothing_but_itself() -> None:
    """Constructors of what gin may name open no file and start no program."""
    harmful = {"open", "eval", "exec", "os", "shutil", "subprocess", "importlib", "socket"}
    harmful |= {"as_path", "read_bytes", "write_text", "write_bytes", "write_atomically"}
    configurables = _configurables()
    assert len(configurables) > 40
    constructors = ("__init__", "__post_init__", "__new__")
    for cls in configurables:
        tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and part.name in constructors:
                        used = {each.id for each in ast.walk(part) if isinstance(each, ast.Name)}
                        attributes = (x for x in ast.walk(part) if isinstance(x, ast.Attribute))
                        used |= {each.attr for each in attributes}
                        assert not used & harmful, (cls, used & harmful)
