"""Corpora as seqio tasks: one file a corpus, and the mixtures over them."""
