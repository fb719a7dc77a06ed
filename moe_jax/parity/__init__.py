"""The grid: layers on simulated meshes against NumPy loops."""
