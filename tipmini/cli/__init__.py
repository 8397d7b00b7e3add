"""The commands of those who merge."""
