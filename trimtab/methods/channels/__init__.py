"""Coupled channels that vanish for real."""
