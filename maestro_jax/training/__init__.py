"""Training: state, step, loop, optimizers, partitioning and checkpoints."""
