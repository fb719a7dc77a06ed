"""Text data: TFDS builders, tokenizers, objectives, pipeline.

Start at `pipeline.load`. Knows no model and needs no jax: sources find or build
a TFDS dataset, documents index it, streams turn row numbers into windows,
objectives turn windows into rows, and bigram is the floor to compare with.
"""
