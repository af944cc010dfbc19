"""Loss functions: pure functions of arrays."""
