"""Layers, steps and products side by side: how fast, and how near the floor."""
