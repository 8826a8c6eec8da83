"""What this room adds to `core.errors`."""

from trimtab.core.errors import ModelError


class Unsupported(ModelError):
    """A model that is whole, but of which some part is not covered here; it runs through transformers."""
