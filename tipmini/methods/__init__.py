"""Merging adapters, and pruning models."""
