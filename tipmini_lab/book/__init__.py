"""Tables, figures, claims and pages."""
