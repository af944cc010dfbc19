"""MAESTRO in JAX: one encoder pretrained on speech and text together (arXiv 2204.03409)."""

from maestro_jax import earlier_names

__version__ = "0.1.0"

earlier_names.install()
