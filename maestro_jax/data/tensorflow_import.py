"""Importing TensorFlow where JAX is the one that computes."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports TensorFlow so that it writes nothing while it loads and leaves GPUs to JAX.

    Its C++ libraries write to stderr before any setting of theirs is read; after an error what they
    wrote is shown. Call before anything else of `maestro_jax.data` that imports TensorFlow.
    """
    with _held_back_stderr():
        import tensorflow as tf
        import tensorflow_text  # noqa: F401

        # Else the first operation would reserve the whole memory of every GPU.
        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Keeps what the process and its C++ libraries write to stderr, to show it after an error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
