"""The one exception that users meet. No imports, so that reward processes stay light."""


class RloptError(Exception):
    """A refusal that a user can act on: one line with the key, the value and the way out."""


def need(condition: bool, key: str, value: object, way_out: str) -> None:
    """Refuse `key=value` unless `condition` holds."""
    if not condition:
        raise RloptError(f"{key}={value}: {way_out}")


class NoEngine(Exception):
    """Groups are asked for and no engine is left to sample them; the replacements wait for weights. Never leaves the loop."""
