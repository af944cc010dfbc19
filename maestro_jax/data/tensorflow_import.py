"""Importing TensorFlow where JAX is the one that computes."""

from __future__ import annotations

from maestro_jax.files import prepare_clients
from maestro_jax.stderr import held_back_stderr


def import_tensorflow() -> None:
    """Imports TensorFlow so that it writes nothing while it loads and leaves GPUs to JAX.

    Its C++ libraries write to stderr before any setting of theirs is read; after an error what they
    wrote is shown. Call before anything else of `maestro_jax.data` that imports TensorFlow.
    """
    prepare_clients()
    with held_back_stderr():
        import tensorflow as tf
        import tensorflow_text  # noqa: F401

        # Else the first operation would reserve the whole memory of every GPU.
        tf.config.set_visible_devices([], "GPU")
