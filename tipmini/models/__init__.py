"""Adapters and models as data: in, checked, out."""
