"""What every test finds: eight CPU devices, quick compiling, quiet libraries, the same examples."""

from __future__ import annotations

import os
import pathlib
import tempfile

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
# Corpora that tests make are kept between runs; those of whoever runs the tests are not touched.
os.environ["MAESTRO_DATA_DIR"] = str(pathlib.Path(__file__).resolve().parent / ".cache" / "data")
# A test that plots needs no display, and none may write below the home directory.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "maestro_jax_matplotlib"))

import hypothesis  # noqa: E402
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
