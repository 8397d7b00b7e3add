"""From executed notebooks and pages to the built book, its PDF and its archive."""
