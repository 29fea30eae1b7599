"""The command line as a process of its own, for tests."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

CONSOLE = [str(Path(sys.executable).with_name("implicitexp"))]
MODULE = [sys.executable, "-m", "implicitexp"]


def process(command: list[str], line: str, folder: Path, **variables: str) -> tuple[subprocess.CompletedProcess, float]:
    """-> what it did, and how many seconds that took."""
    began = time.perf_counter()
    full = [*command, *shlex.split(line)]
    done = subprocess.run(full, cwd=folder, env=environment(**variables), capture_output=True, text=True)
    return done, time.perf_counter() - began


def environment(**variables: str) -> dict[str, str]:
    """The tests' own, on the CPU."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "110", **variables}
