"""Which of several processes this is, by the environment alone: JAX is imported later."""

import os

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def several() -> bool:
    """Whether the environment names other processes."""
    return COORDINATOR in os.environ


def is_secondary(device: str) -> bool:
    """Whether another process of the mesh keeps the record."""
    return device == "mesh" and several() and os.environ.get(PROCESS, "0") != "0"
