"""Starts small trainings without importing torch each time: reads ``FOLDER STEPS [--resume]`` lines, forks, reports.

For each line it prints ``started PID`` and, when that child has ended, ``ended STATUS`` (negative: the signal that ended it).
Nothing of torch runs in the parent, so that no thread is lost in the fork.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

import tensorboard.summary.writer.event_file_writer  # noqa: F401 - each child would import it again
import tiny_training


def main() -> None:
    """Serves until standard input ends."""
    print("ready 0", flush=True)
    for line in sys.stdin:
        folder, steps, *options = line.split("\t")
        child = os.fork()
        if child == 0:
            with open(Path(folder) / "log.txt", "a", encoding="utf-8") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            tiny_training.main(Path(folder), int(steps), "--resume" in "".join(options))
            sys.stdout.flush()
            os._exit(0)
        print("started", child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
