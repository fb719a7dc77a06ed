"""Figures from records; one function a figure."""
