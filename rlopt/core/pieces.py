"""A text to train a base model on, in pieces."""

Pieces = list[tuple[str, bool]]
"""Each with whether the policy wrote it, and so learns it."""
