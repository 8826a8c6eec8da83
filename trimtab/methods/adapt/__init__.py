"""What is trained beside, or instead of, a model's own weights."""
