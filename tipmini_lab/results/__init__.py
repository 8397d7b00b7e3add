"""What was measured, and its statistics."""
