"""Data, tasks and models, and how they are scored."""
