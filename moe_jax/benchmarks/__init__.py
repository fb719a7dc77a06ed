"""The layer's variants side by side: the same numbers, and how fast."""
