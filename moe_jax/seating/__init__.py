"""Seating: how many rows an expert has, and who gets them."""
