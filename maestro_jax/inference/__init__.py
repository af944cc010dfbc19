"""Text and alignments from audio files with a trained model."""
