"""Models: decoder-only and encoder-decoder Transformers."""
