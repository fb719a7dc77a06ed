"""Expert kinds: what an expert computes on its rows."""
