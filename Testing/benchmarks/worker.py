"""A process that does one job after another: a job per line on stdin, its end per line on stdout.

Importing torch and starting CUDA takes longer than most registrations on a GPU.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch

from .job import Job, do_job


def main() -> None:
    # What libraries print must not be taken for a reply.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        status, message = _done(Job.from_json(line))
        replies.write(json.dumps({"status": status, "message": message}) + "\n")


def _done(job: Job) -> tuple[str, str]:
    # Whatever one job dies of, the next one has its turn.
    try:
        do_job(job)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    finally:
        if job.device.startswith("cuda"):
            _release_device_memory()
    return "done", ""


def _release_device_memory() -> None:
    """Give cached memory back, which other processes share; a device that a failed job broke says so later."""
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        traceback.print_exc()


if __name__ == "__main__":
    main()
