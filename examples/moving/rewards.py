"""One reward in the signatures of three frameworks; rlopt calls each as it expects it.

python -m rlopt.train +algo=grpo reward.fn=examples/moving/rewards.py:trl_reward
"""

import re


def right(completion: str, answer: str) -> float:
    found = re.findall(r"-?\d+", completion)
    return float(bool(found) and found[-1] == answer)


def trl_reward(completions, answer, **columns):
    """TRL: lists of completions and of every column; completions are messages where prompts are."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [right(text, wanted) for text, wanted in zip(texts, answer, strict=True)]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl."""
    return {"score": right(solution_str, ground_truth), "length": len(solution_str)}


def reward(prompt, completion, answer, **columns):
    """rlopt."""
    return right(completion, answer)
