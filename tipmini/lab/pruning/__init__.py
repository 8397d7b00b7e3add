"""Pruning a model group by group while it is fine-tuned, and writing what is left."""
