"""How strong, and where."""
