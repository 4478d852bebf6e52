"""Ink networks, composed from the parts in ``core``."""
