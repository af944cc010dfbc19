"""Scores of texts against references, their intervals, and published results."""
