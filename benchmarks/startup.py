"""Seconds from command to result, each in a process of its own: `python benchmarks/startup.py`.

The main job on a fresh JAX cache and on a warm one, `--help`, and a configuration error. Needs an idle machine.
"""

import os
import subprocess
import sys
import tempfile
import time

LIMITS = {"main job, cold": 45.0, "main job, warm": 25.0, "--help": 2.0, "configuration error": 2.0}  # s


def seconds(arguments: list[str], status: int, environment: dict[str, str]) -> float:
    """How long `python -m implicitexp` takes with these arguments. **Raises** where its exit status is another."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "implicitexp", *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode != status:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/jax"}
        job = ["problem=ode", f"tracker.uri=sqlite:///{folder}/mlflow.db"]
        jobs = {
            "main job, cold": ([*job, f"hydra.run.dir={folder}/cold"], 0),
            "main job, warm": ([*job, f"hydra.run.dir={folder}/warm"], 0),
            "--help": (["--help"], 0),
            "configuration error": (["problem=odd"], 2),
        }
        for name, (arguments, status) in jobs.items():
            spent = seconds(arguments, status, environment)
            print(f"{name:22}{spent:7.1f} s   (limit {LIMITS[name]:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
