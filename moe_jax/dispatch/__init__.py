"""Dispatch algorithms: how rows reach experts and come back."""
