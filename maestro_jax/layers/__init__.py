"""Generic layers that the boxes of Figure 1 are built from."""
