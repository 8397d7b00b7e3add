"""Time and memory of the main steps, beside their peers and the machine's own limits."""
