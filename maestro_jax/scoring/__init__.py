"""Metrics of texts against references, their intervals, and published scores."""
