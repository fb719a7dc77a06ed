"""Text data: TFDS builders, tokenizers, objectives, pipeline."""
