"""Parameters, FLOPs, buffers and bytes before a run; needs no JAX."""
