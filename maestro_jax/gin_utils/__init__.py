"""Gin files: finding, reading and checking them, and the record of a run's configuration."""
