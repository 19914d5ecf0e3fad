"""What a command shows, where its reader may go away first: `python -m rlopt.train ... | head`."""

import os
from typing import IO

from rich.console import Console


class Shown(Console):
    """A console that shows nothing more when its reader is gone, and raises nothing: a run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop(self.file)


def drop(*streams: IO[str] | None) -> None:
    """Send what is written to these from now on to /dev/null, and what they still hold."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
