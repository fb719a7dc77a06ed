"""Routers: who goes where, with what weight. One file a method."""
