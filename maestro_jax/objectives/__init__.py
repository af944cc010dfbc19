"""Which losses run on which stream, with which weight, from which step: one file a method."""
