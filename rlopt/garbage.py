"""How often a process looks for objects that only refer to each other."""

import atexit
import gc


def collect_seldom() -> None:
    """Have this process look for garbage after 100,000 new objects, not after Python's 700, and not once more when it ends.

    torch, vLLM and what they import make a million objects that stay. To look at them again and again is a quarter of the time
    that their import takes, and to look at them at the end is a second. What nothing refers to is freed at once in either case.
    """
    gc.set_threshold(100_000, 10, 10)
    atexit.register(gc.freeze)
