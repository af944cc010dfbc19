"""MAESTRO in JAX: one encoder pretrained on speech and text together (arXiv 2204.03409)."""

__version__ = "0.1.0"
