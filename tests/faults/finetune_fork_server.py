"""Goes on with small fine-tunings without importing torch each time: reads folders, forks, reports; see fork_server.py."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

# Each child would import these again.
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import rouge_score.rouge_scorer  # noqa: F401
import sacrebleu  # noqa: F401
import tensorboard.summary.writer.event_file_writer  # noqa: F401

from owngpt.finetune.start import finetune


def main() -> None:
    """Serves until standard input ends."""
    print("ready 0", flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        child = os.fork()
        if child == 0:
            _work(folder)
        print("started", child, flush=True)
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


def _work(folder: Path) -> None:
    import torch

    status = 1
    with open(folder.with_suffix(".log"), "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        torch.set_num_threads(1)
        finetune(output=folder, resume=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
