"""Probes: methods that change nothing and say where a model could be cut."""
