"""Token inventories: SentencePiece models and bytes."""
