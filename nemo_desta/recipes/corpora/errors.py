"""The one error of this package."""


class CorpusError(ValueError):
    """A card, a metadata row or a path that cannot be used; for a row the message starts with ``file:row``."""
