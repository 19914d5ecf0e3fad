"""A tool, and problems for it: `python tool.py FILE` writes the rows. A chat model is shown one call, and calls then itself.

    python tool.py problems.jsonl
    python -m rlopt.train +algo=grpo model.path=HuggingFaceTB/SmolLM2-135M-Instruct data.train=problems.jsonl \\
        'env.tools=[tool.py:multiply]' env.max_turns=3 reward.fn=rlopt.rewards:mathematics rollout.max_new_tokens=64
"""

import argparse
import json
import random
from pathlib import Path


def multiply(a: int, b: int) -> int:
    """
    Multiply two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def rows(count: int, seed: int) -> list[dict[str, object]]:
    """Different products, each after one that was worked with the tool."""
    chance, asked = random.Random(seed), dict[tuple[int, int], None]()
    while len(asked) < count:
        asked[chance.randint(11, 99), chance.randint(3, 29)] = None
    call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 12, "b": 31}}\n</tool_call>'
    shown = [
        {"role": "user", "content": "What is 12 times 31?"},
        {"role": "assistant", "content": call},
        {"role": "tool", "content": "372"},
        {"role": "assistant", "content": "The answer is 372."},
    ]
    return [
        {"prompt": [*shown, {"role": "user", "content": f"What is {a} times {b}?"}], "answer": str(a * b)} for a, b in asked
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the file that is written")
    parser.parse_args().out.write_text("".join(json.dumps(row) + "\n" for row in rows(200, 0)))
