"""Reward functions as users write them, good and bad."""

import os
import time


def length(prompt: str, completion: str, answer: str, **extra: object) -> dict[str, float]:
    return {"score": float(len(completion)), "format": 1.0}


def moody(prompt: str, completion: str, answer: str, **extra: object) -> float | None:
    if completion == "skip":
        return None
    if completion == "raise":
        raise ValueError("no idea")
    if completion == "hang":
        time.sleep(60)
    if completion == "die":
        os._exit(3)
    if completion == "nan":
        return float("nan")
    return 1.0


not_a_function = 3


def asleep(**call: object) -> None:
    time.sleep(60)
