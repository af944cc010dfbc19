"""Sets up the process of a command before heavy libraries are imported."""

from __future__ import annotations

import gc
import logging
import os

_COLLECTION_THRESHOLDS = (100_000, 20, 20)
"""New objects, and younger collections, that start a collection of each generation."""


def prepare_process(*, tensorflow: bool = False) -> None:
    """Logs maestro_jax at level INFO to stderr, and other libraries from WARNING on.

    Garbage is collected seldom: imports and tracing make many objects, nearly all of which stay.

    Call before TensorFlow and JAX are imported. A variable that is already set wins.

    Args:
        tensorflow: Whether to import TensorFlow as well, as `import_tensorflow` does.
    """
    # By default, a third of the time in which a training step is traced goes into collections.
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from maestro_jax.files import prepare_clients

    prepare_clients()
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.set_stderrthreshold(absl_logging.WARNING)
    # TensorFlow Datasets warns of an attribute that it reads itself.
    logging.getLogger("absl").addFilter(
        lambda record: "`FeatureConnector.dtype` is deprecated" not in str(record.msg)
    )
    progress = logging.getLogger("maestro_jax")
    if not progress.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        progress.addHandler(handler)
        progress.setLevel(logging.INFO)
        progress.propagate = False
    if tensorflow:
        from maestro_jax.data.tensorflow_import import import_tensorflow

        import_tensorflow()


def compile_alone() -> None:
    """Lets processes that share no program compile without each other; to be called before JAX.

    By default, GPU compilers of all processes tune the kernels of a program together, and wait for
    each other: for ever, if not all of them compile it.
    """
    flag = "--xla_gpu_shard_autotuning"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, so that a second start does not compile again.

    The directory is `$JAX_COMPILATION_CACHE_DIR`, else `maestro_jax/xla` below `$XDG_CACHE_HOME`
    or `~/.cache`. If it cannot be created, programs are compiled each time.
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    from maestro_jax.files import cache_dir

    directory = cache_dir() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
