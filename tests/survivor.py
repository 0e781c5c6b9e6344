"""A training in a process that a test may kill; forked from one that has imported all, so that it starts at once."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["nnshop", "llvmlite", "tqdm", "matplotlib.figure", "matplotlib.ticker", "survivor"])


def language_model(arguments: list[str], log: Path) -> None:
    """Runs the script with these arguments; what it says goes to a file."""
    from example_loader import load_example

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(load_example("language_model").main(arguments))


def start(arguments: list[str], log: Path) -> BaseProcess:
    """Starts the script; kill, join and look at it as at any process."""
    process = SERVER.Process(target=language_model, args=(arguments, log))
    process.start()
    return process
