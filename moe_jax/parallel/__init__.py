"""Mesh, sharding rules, named collectives, start of processes."""
