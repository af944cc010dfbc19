"""The CTC head: one symbol per frame, read from the shared encoder's output.

Source: Graves et al. 2006 for the output layer. Beside the transducer it needs no prediction
network, so that nothing but the encoder can learn the text.
"""

from __future__ import annotations

from maestro_jax.layers.token_logits import TokenLogits


class CtcHead(TokenLogits):
    """Scores per frame, `[batch, frames, vocab]`; output 0 is the blank."""
