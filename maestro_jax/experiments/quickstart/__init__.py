"""From a directory of recordings to a recogniser and a translator: `maestro quickstart`."""
