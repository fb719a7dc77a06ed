"""Routing, looked at: recorded, measured, replayed; and on given logits."""
