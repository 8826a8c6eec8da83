"""Which weights survive."""
