"""Routing, looked at: what methods compute on given logits."""
