"""Experiments that run from a clone: the demo and its relatives."""
