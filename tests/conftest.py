"""What every test finds: eight CPU devices, quick compiling, quiet libraries, the same examples."""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import signal
import sys
import tempfile
import time

# Before JAX is imported. Tests that are for a GPU are run with JAX_PLATFORMS=cuda.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs of tests run for a fraction of a second: what counts is the time to compile them.
_XLA_FLAGS = {"xla_force_host_platform_device_count": "8"}
if os.environ["JAX_PLATFORMS"] == "cpu":
    _XLA_FLAGS["xla_backend_optimization_level"] = "0"
for _name, _value in _XLA_FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_name}={_value}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# What tests make is kept between runs; what belongs to whoever runs them is not touched.
_CACHE = pathlib.Path(__file__).resolve().parent / ".cache"
os.environ["MAESTRO_DATA_DIR"] = str(_CACHE / "data")
# Workers, their child processes and the next run compile a program once between them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# A test that plots needs no display, and none may write below the home directory.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "maestro_jax_matplotlib"))

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

# A first example compiles, so there is no deadline; the examples are the same in every run.
hypothesis.settings.register_profile(
    "maestro",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("maestro")
logging.set_verbosity(logging.ERROR)
# What a shell runs in the background ignores interrupts, and so would programs that tests start and
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Removes programs that were compiled more than a week ago."""
    if hasattr(config, "workerinput"):
        return
    for path in (_CACHE / "xla").glob("*"):
        if time.time() - path.stat().st_mtime > 7 * 24 * 3600:
            path.unlink(missing_ok=True)


# JAX keeps every program that it compiled; after some hundred modules they fill gigabytes.
_FREE_ABOVE = 1.3 * 2**30
_FREE_IN_A_MODULE = 1.7 * 2**30
_FREE_AFTER_GROWTH = 0.3 * 2**30
_kept = 0.0


def resident_bytes() -> int:
    """Returns the memory of this process, 0 where the system does not tell."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """Frees memory after a module, whose tests share most programs."""
    yield
    free_memory(_FREE_ABOVE)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Frees memory after a test, from a higher level: the next may compile some programs again."""
    free_memory(_FREE_IN_A_MODULE)


def free_memory(above: float) -> None:
    """Drops compiled programs, open figures and freed heap pages once they have grown large.

    Args:
        above: Memory of the process up to which nothing is dropped, bytes.
    """
    global _kept
    if resident_bytes() < max(above, _kept + _FREE_AFTER_GROWTH):
        return
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    _kept = resident_bytes()
