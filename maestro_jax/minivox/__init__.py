"""Synthetic speech: parallel sentences in six languages, spoken by many voices.

`sentences` words one meaning in any language, `espeak` synthesises it, `speech` adds a speaker, a
room and noise, and `corpus` makes the examples of every split.
"""
