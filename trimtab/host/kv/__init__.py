"""Caches of keys and values that take less memory, behind transformers' own `Cache`."""
