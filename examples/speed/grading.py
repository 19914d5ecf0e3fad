"""Grades a second of the mathematics reward: `python examples/speed/grading.py ROWS`, GSM8K's rows as one JSON object a line.

Of each row its own solution with its number, right, wrong, in a box and in a sentence; then, instead of numbers, formulas. They
are graded as a run grades: in processes that can be killed, groups of eight that are asked for at the same time.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from rlopt.cluster.threads import cores
from rlopt.rewards.pool import Question, RewardPool, Scored

GROUP, ROUNDS, GRADES = 8, 5, 4096
"""Answers that are graded by one call, rounds, and grades of a round."""


def numbers(rows: list[dict[str, str]]) -> Iterator[Question]:
    """As models answer GSM8K: a solution that ends with a number, right or wrong, or one in a box; another each time round."""
    for turn in count():
        for row in rows:
            solution, _, number = row["answer"].rpartition("#### ")
            answer = str(int(number.replace(",", "")) + turn)
            for said in (f"#### {answer}", f"#### {answer}7", f"The answer is \\boxed{{{answer}}}.", f"So it is ${answer}."):
                yield Question(row["question"], solution + said, answer)


def formulas(rows: list[dict[str, str]]) -> Iterator[Question]:
    """What is more than a number, and is read as mathematics, half of it right; each differs from all others."""
    for place, row in enumerate(cycle(rows), 1):
        solution, _, _ = row["answer"].rpartition("#### ")
        for right in (f"\\frac{{{place}x}}{{7}}", f"\\sqrt{{{place}}}+x"):
            yield Question(row["question"], f"{solution}\\boxed{{{right}}}", right.replace("\\frac", "\\dfrac"))
            yield Question(row["question"], f"{solution}\\boxed{{{right}+y}}", right)


def rate(pool: RewardPool, asked: list[Question], at_once: int) -> tuple[float, int]:
    """Grades a second, and how many were 1."""
    groups = [asked[start : start + GROUP] for start in range(0, len(asked), GROUP)]
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as threads:
        scores = [score for scored in threads.map(pool.score, groups) for score in scored]
    seconds = time.monotonic() - began
    return len(asked) / seconds, sum(isinstance(score, Scored) and score.reward == 1.0 for score in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().rows.read_text().splitlines()]
    table = Table("answers", "processes", "grades/s", "least to most", "right")
    for name, questions in (("numbers, GSM8K", numbers(rows)), ("formulas", formulas(rows))):
        for workers in sorted({1, cores()}):
            pool = RewardPool("rlopt.rewards:mathematics", None, workers, 60.0, "stop")
            rounds = [list(islice(questions, GRADES)) for _ in range(ROUNDS + 1)]
            found = [rate(pool, asked, 2 * workers) for asked in rounds][1:]  # the first loads libraries
            pool.close()
            rates = [speed for speed, _ in found]
            shown = f"{median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", f"{found[0][1] / GRADES:.0%}"
            table.add_row(name, str(workers), *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
