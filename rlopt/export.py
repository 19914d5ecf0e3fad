"""`python -m rlopt.export RUN --out DIR`: the model of a checkpoint as a Hugging Face folder."""

import argparse
import json
import sys

from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlopt.export", description="Write a run's model as a Hugging Face folder.")
    parser.add_argument("run", type=at_home, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=at_home, required=True, metavar="DIR", help="the folder to write; must not be there yet")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step; default latest")
    parser.add_argument("--shard-size", default="5GB", help="of a safetensors file at most; default 5GB")
    arguments = parser.parse_args()
    from rlopt.run.export import export  # heavy: only once the arguments are known to be good

    try:
        done = export(arguments.run, arguments.out, arguments.checkpoint, arguments.shard_size)
    except RloptError as error:
        sys.exit(f"error: {error}")
    print(f"differs from the learner by {done.difference:.1e} nats at most, over {done.tokens} tokens")
    for file in sorted(done.folder.iterdir()):
        print(f"{json.dumps(file.name)[1:-1]:<28}{file.stat().st_size:>14,} bytes")


if __name__ == "__main__":
    main()
