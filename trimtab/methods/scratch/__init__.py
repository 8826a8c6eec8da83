"""What stands for a model's matrices while it is trained from its first step."""
