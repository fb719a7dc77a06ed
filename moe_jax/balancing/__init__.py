"""Balancing rules: losses and state that keep experts busy."""
