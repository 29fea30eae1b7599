"""A store of MLflow's, read back by a process of its own: the tests' process never imports MLflow."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

READER = """
import json, sys
from mlflow import MlflowClient

def read(run):
    history = client.get_metric_history(run.info.run_id, "loss")
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    return {"id": run.info.run_id, "status": run.info.status, "experiment": experiments[run.info.experiment_id].name,
            "experiment_tags": experiments[run.info.experiment_id].tags, "files": files,
            "loss": [[m.step, m.value] for m in history], "artifact_uri": run.info.artifact_uri, **run.data.to_dictionary()}

client = MlflowClient(tracking_uri=sys.argv[1])
experiments = {e.experiment_id: e for e in client.search_experiments()}
print(json.dumps({run.info.run_name: read(run) for run in client.search_runs(list(experiments))}))
"""


def python(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """A process of its own that runs this code."""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([sys.executable, "-c", code, *args], text=True, env=environment, **options)


def read_back(uri: str) -> dict[str, Any]:
    """All runs of a store by their names, in the words of MLflow's client."""
    with python(READER, uri, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        return json.loads(reader.communicate()[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
