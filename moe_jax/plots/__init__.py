"""Figures, tables and pages drawn from the records that a run leaves.

Reads `config.json`, `metrics.jsonl` and `summary.json` of a workdir and nothing
else: no JAX, no model, no checkpoint.
"""
