"""Whole decoder blocks."""
