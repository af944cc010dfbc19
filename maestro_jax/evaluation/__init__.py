"""Scores of recognition and translation, the report, and the pictures of a run.

Nothing here knows about a model: evaluation sees batches, a function that turns features into
strings, and the strings that should have come out.
"""
