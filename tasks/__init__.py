"""The seqio tasks and mixtures of all corpora.

`speech_tasks`, `text_tasks` and `minivox_tasks` register the tasks of each corpus and the mixtures
over its languages, `mixtures` those over several corpora. `corpus_tasks` has the functions that
they call, which also register the tasks of a corpus of one's own.
"""
