"""What the warm start of the deep equilibrium network saves, in solver steps an update: `python benchmarks/warm_start.py`.

A row a setting: jittered images, as the problem's YAML has them, and images that stay as they are, from zero and from
the z of the last time that each was drawn; steps over the first and the last tenth of the updates, and test accuracy.
Further arguments are overrides: `python benchmarks/warm_start.py solver=picard`.
"""

import statistics
import sys
import tempfile

import implicitexp

SETTINGS = {"jittered": [], "still": ["problem.jitter=0", "problem.noise=0"]}


def trained(warm: bool, setting: str, overrides: list[str]) -> tuple[list[float], float]:
    """-> solver steps of each update, test accuracy at the end."""
    fixed = ["problem=fixed_point", f"problem.warm_start={str(warm).lower()}", "tracker=none", "log_every=1"]
    with tempfile.TemporaryDirectory() as folder:
        where = [f"hydra.run.dir={folder}", "check_every=1000000"]
        run = implicitexp.run([*fixed, *where, *SETTINGS[setting], *overrides])
        return [x["solver/steps"] for x in run.history if "solver/steps" in x], run.metrics["test_accuracy"]


def main(overrides: list[str]) -> None:
    print(f"{'images':10}{'start':8}{'first tenth':>12}{'last tenth':>12}{'accuracy':>10}", flush=True)
    for setting in SETTINGS:
        for warm in (False, True):
            steps, accuracy = trained(warm, setting, overrides)
            tenth = max(1, len(steps) // 10)
            means = "".join(f"{statistics.mean(part):12.1f}" for part in (steps[:tenth], steps[-tenth:]))
            print(f"{setting:10}{'warm' if warm else 'cold':8}{means}{100 * accuracy:9.2f}%", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
