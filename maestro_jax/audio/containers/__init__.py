"""Containers of audio: what their headers state, what they hold, and how to read all of it."""
