"""Scores of recognition and translation, comparisons of models, and probes of encoders."""
