"""Decoding: search over static shapes."""
