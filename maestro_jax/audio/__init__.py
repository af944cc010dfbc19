"""Audio files: containers, decoding, levels, resampling and acoustics."""
