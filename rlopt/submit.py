"""`python -m rlopt.submit --address http://HEAD:8265 -- +algo=NAME [key=value ...]`: a run as a Ray job.

python -m rlopt.submit --address URL [--wait] [--send-keys] [--include FILE ...] -- +algo=grpo run.dir=/shared/runs/grpo
python -m rlopt.submit --address URL status|logs|stop JOB
"""

import argparse
import os
import sys
from pathlib import Path

from rlopt.cluster import ray_jobs
from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError


def main() -> None:
    before, overrides = sys.argv[1:], list[str]()
    if "--" in before:
        at = before.index("--")
        before, overrides = before[:at], before[at + 1 :]
    parser = argparse.ArgumentParser(prog="python -m rlopt.submit", usage=__doc__, add_help=True)
    parser.add_argument("verb", nargs="?", choices=["status", "logs", "stop"])
    parser.add_argument("job", nargs="?")
    parser.add_argument("--address", default=os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument("--include", type=at_home, nargs="+", default=[], action="extend", help="files that the run needs")
    parser.add_argument("--wait", action="store_true", help="follow the log; exit as the job does")
    parser.add_argument("--send-keys", action="store_true", help="send your keys, masked; else the cluster's own are used")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(before)
    try:
        if arguments.inside:
            ray_jobs.open_keys(Path.cwd())
            os.execv(sys.executable, [sys.executable, "-m", "rlopt.train", *overrides])
        sys.exit(_do(arguments, overrides))
    except RloptError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the job continues; status, logs and stop take its id", file=sys.stderr)
        sys.exit(130)


def _do(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """What was asked for; the exit status."""
    if not arguments.verb:
        kept = [] if arguments.send_keys else [name for name in ray_jobs.KEYS if name in os.environ]
        cluster, job = ray_jobs.submit_run(arguments.address, arguments.include, overrides, arguments.send_keys)
        if kept:
            print(f"{' and '.join(kept)} stay here: the job uses the cluster's own (or --send-keys)", file=sys.stderr)
        print(job, flush=True)
        return _follow(cluster, job) if arguments.wait else 0
    if not arguments.job:
        raise RloptError(f"{arguments.verb}: of which job? give the id that submitting printed")
    cluster = ray_jobs.Jobs(arguments.address)
    if arguments.verb == "status":
        print(cluster.status(arguments.job))
    elif arguments.verb == "logs":
        if arguments.wait:
            return _follow(cluster, arguments.job)
        print(cluster.logs(arguments.job), end="")
    elif cluster.stop(arguments.job):
        print(f"asked to stop: it finishes its step, saves a checkpoint and ends, in {ray_jobs.STOP_WAIT_S} s at most")
    else:
        print("was not running")
    return 0


def _follow(cluster: ray_jobs.Jobs, job: str) -> int:
    for text in cluster.follow(job):
        print(text, end="", flush=True)
    status = cluster.status(job)
    print(status)
    return 0 if status == "SUCCEEDED" else 1


if __name__ == "__main__":
    main()
