"""From corpora to device batches: vocabularies, audio, the stream loader."""
