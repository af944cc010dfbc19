"""Published corpora on disk in their official layouts, read and written as 16 kHz shards."""
