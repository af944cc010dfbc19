"""Which package may import which, and what must import without TensorFlow."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "maestro_jax"

# From the bottom to the top. A package imports those on the rows above its own, and itself; modules
# beside the packages, such as errors and batches, are at the bottom.
LAYERS = (
    {""},
    {"audio", "losses", "text"},
    {"layers", "scoring"},
    {"modules"},
    {"decoding", "objectives"},
    {"data"},
    {"minivox"},
    {"tasks"},
    {"training"},
    {"inference", "planning"},
    {"evaluation", "reports"},
    {"gin_utils"},
    {"experiments"},
    {"cli"},
)
LEVELS = {package: level for level, packages in enumerate(LAYERS) for package in packages}
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"}
WITH_TENSORFLOW = {"data", "minivox", "tasks"}
# What other packages may import from these at their top: no TensorFlow in it.
LIGHT = {
    "maestro_jax.data.corpora",
    "maestro_jax.data.data_dir",
    "maestro_jax.data.tensorflow_import",
    "maestro_jax.minivox.corpus",
}


def sources() -> list[tuple[str, pathlib.Path]]:
    """Package and path of every module; `tasks` for the directory of that name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        found.append((parts[0] if len(parts) > 1 else "", path))
    found += [("tasks", path) for path in sorted((ROOT / "tasks").glob("*.py"))]
    return found


def imports(path: pathlib.Path) -> list[tuple[str, int, bool]]:
    """Module, line, and whether the import runs when the file is imported, of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # Imports for type checkers alone never run.
    unread = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(name, node.lineno, id(node) not in lazy) for name in names]
    return found


def every_import():
    for package, path in sources():
        for name, line, eager in imports(path):
            yield package, f"{path.relative_to(ROOT)}:{line}", name, eager


def module_name(path: pathlib.Path) -> str:
    """The dotted name of a module of the package or of `tasks`."""
    root = ROOT if PACKAGE in path.parents else PACKAGE
    base = path.relative_to(ROOT).with_suffix("")
    parts = [*(() if root is ROOT else ("maestro_jax",)), *base.parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules() -> dict[str, set[str]]:
    """The modules of this project that each of its modules imports, inside functions too."""
    modules = {module_name(path): path for _, path in sources()}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name, _, _ in imports(path):
            candidates = (name, name.rpartition(".")[0])
            found = next((each for each in candidates if each in modules), None)
            if found and found != module:
                graph[module].add(found)
    return graph


def test_every_package_has_a_level() -> None:
    assert {package for package, _ in sources()} == set(LEVELS)


def test_imports_run_one_way() -> None:
    def package(module: str) -> str:
        parts = module.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in LEVELS else ""

    wrong = [
        f"{module} imports {target}"
        for module, targets in imported_modules().items()
        for target in targets
        if package(module) != package(target) and LEVELS[package(target)] >= LEVELS[package(module)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: set(targets) for module, targets in imported_modules().items()}
    # Modules that import nothing that is left cannot be part of a circle.
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {m: targets - leaves for m, targets in graph.items() if m not in leaves}
    while ends := set(graph) - set().union(*graph.values()):
        graph = {m: targets for m, targets in graph.items() if m not in ends}
    assert not graph, graph


def test_only_gin_utils_knows_gin() -> None:
    wrong = [
        f"{where}: {name}"
        for package, where, name, _ in every_import()
        if name.split(".")[0] == "gin" and package != "gin_utils"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_data_knows_tensorflow() -> None:
    wrong = []
    for package, where, name, eager in every_import():
        parts = name.split(".")
        if parts[0] in TENSORFLOW and package not in WITH_TENSORFLOW:
            wrong.append(f"{where}: {name}")
        if package in WITH_TENSORFLOW or not eager or parts[0] != "maestro_jax":
            continue
        if parts[1] in WITH_TENSORFLOW and not any(
            name == light or name.startswith(f"{light}.") for light in LIGHT
        ):
            wrong.append(f"{where}: {name} is to be imported inside the function that needs it")
    assert not wrong, "\n".join(wrong)


def test_no_package_shadows_the_gin_library() -> None:
    assert not (ROOT / "gin" / "__init__.py").exists()
    library = pathlib.Path(importlib.util.find_spec("gin").origin)
    assert ROOT / "gin" not in library.parents


BLOCKED = f'''
import importlib, sys

class Hiding:
    """A finder that finds all but some packages, as where those are not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(TENSORFLOW)!r}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
'''


def run_blocked(program: str, *arguments: str) -> str:
    """Runs a program in which TensorFlow cannot be imported."""
    process = subprocess.run(
        [sys.executable, "-c", BLOCKED + textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_everything_but_data_imports_without_tensorflow() -> None:
    program = """
    import pkgutil
    import maestro_jax

    count = 0
    for package in sys.argv[1].split():
        package = importlib.import_module(f"maestro_jax.{package}")
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
            count += 1
    for name in sys.argv[2].split():
        importlib.import_module(name)
    print(count)
    """
    packages = [name for name in LEVELS if name and name not in WITH_TENSORFLOW]
    assert int(run_blocked(program, " ".join(packages), " ".join(LIGHT))) > 30


def test_training_runs_without_tensorflow(tmp_path: pathlib.Path) -> None:
    program = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import pathlib
    from maestro_jax.batches import StreamConfig, synthetic_batch
    from maestro_jax.objectives.base import Objective
    from maestro_jax.training.trainer import train
    from maestro_jax.training.optimizers import AdamConfig
    from maestro_jax.training.run import TrainRun

    class Loudness(nn.Module):
        @nn.compact
        def __call__(self, audio):
            return nn.Dense(1)(audio / 32768.0)

    class Regression(Objective):
        loss_weights = {"paired": {"square": 1.0}}

        def init(self, model, rng, batch):
            return model.init(rng, batch["paired"]["audio"])["params"]

        def loss_terms(self, model, params, ema_params, batch, **options):
            predicted = model.apply({"params": params}, batch["paired"]["audio"])
            return {"square": (jnp.mean(jnp.square(predicted - 1.0)), jnp.ones(()))}, {}

    streams = {
        "paired": StreamConfig(mixture="none", batch_size=8, audio_samples=400, text_tokens=4)
    }
    run = TrainRun(
        model=Loudness(), objective=Regression(), optimizer=AdamConfig(warmup_steps=1),
        streams=streams, steps=3,
    )
    batches = lambda start: iter(synthetic_batch(streams, step, 32) for step in range(start, 9))
    print(int(train(run, pathlib.Path(sys.argv[1]), batches=batches).step))
    """
    assert run_blocked(program, str(tmp_path / "model")).split()[-1] == "3"
