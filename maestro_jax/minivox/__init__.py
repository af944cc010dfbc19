"""Speech made from nothing: parallel sentences in six languages, spoken by many voices.

`sentences` says one meaning in any language, `espeak` speaks it, `recording` puts it into a room
with some noise, and `corpus` decides who says what in which split.
"""
