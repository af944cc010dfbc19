"""The networks of MAESTRO: one file a box of the paper's Figure 1, in Flax Linen."""
