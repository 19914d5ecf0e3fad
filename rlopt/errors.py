"""The one exception that users meet. No imports, so that reward processes stay light."""


class RloptError(Exception):
    """A refusal that a user can act on: one line with the key, the value and the way out."""
