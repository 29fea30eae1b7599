"""What every worker does: read a line, do the task, write a line (the protocol stands in `benchmarks/peers/workers.py`)."""

import json
import os
import sys
import time

import numpy as np


def serve(tasks):
    """`tasks`: name -> from the arrays of a case to a function without arguments, which returns value and a list of arrays."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(tasks, prepared, request)
        except Exception as error:  # a border: the process beside is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(tasks, prepared, request):
    key = (request["task"], request["data"])
    if key not in prepared:
        for other in [k for k in prepared if k[1] != request["data"]]:  # one case at a time: its arrays can be large
            del prepared[other]
        with np.load(request["data"]) as data:
            prepared[key] = tasks[request["task"]]({name: data[name] for name in data.files})
    run, seconds, value, gradient = prepared[key], [], None, []
    for _ in range(request["calls"]):
        began = time.perf_counter()
        value, gradient = run()
        seconds.append(time.perf_counter() - began)
    flat = [np.asarray(g, np.float64).ravel() for g in gradient] if request["gradient"] else []
    return {
        "seconds": seconds,
        "value": None if value is None else float(value),
        "gradient": np.concatenate(flat).tolist() if flat else None,
    }
