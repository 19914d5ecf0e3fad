"""How often a process looks for objects that only refer to each other."""

import gc


def collect_seldom() -> None:
    """Have this process look for garbage after 100,000 new objects, not after Python's 700.

    vLLM and what it imports make a million objects that stay; to look at them again and again is a quarter of the time that the
    import takes. What nothing refers to is freed at once in either case.
    """
    gc.set_threshold(100_000, 10, 10)
