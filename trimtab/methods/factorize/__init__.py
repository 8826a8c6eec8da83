"""Matrices as products and sums of thinner ones."""
