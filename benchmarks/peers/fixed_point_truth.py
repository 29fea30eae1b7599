"""The gradients of cases 11 to 13 by NumPy: Newton's method until it stands still, and the implicit function theorem."""

from typing import Any

import numpy as np

from benchmarks.peers.cases import ROUNDING, Reference

NEWTON_STEPS = 30
CONDITION = 1 / (1 - 0.99)  # of case 13


def _equilibrium(matrix: np.ndarray, drive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z = tanh(W z + d), and how far the last step of Newton's method went."""
    z = np.zeros_like(drive)
    for _ in range(NEWTON_STEPS):
        image = np.tanh(matrix @ z + drive)
        step = np.linalg.solve(np.eye(z.size) - (1 - image**2)[:, None] * matrix, image - z)
        z = z + step
        if np.max(np.abs(step)) < 1e-15:
            break
    return z, step


def _pulled(matrix: np.ndarray, z: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cotangents of W and of the drive."""
    slope = 1 - z**2
    w = np.linalg.solve((np.eye(z.size) - slope[:, None] * matrix).T, cotangent)
    return np.outer(slope * w, z), slope * w


def tanh_reference(matrix: np.ndarray, shift: np.ndarray) -> Reference:
    """Of |z|^2, by W and b."""
    z, step = _equilibrium(matrix, shift)
    return Reference.of_two(_pulled(matrix, z, 2 * z), _pulled(matrix, z - step, 2 * (z - step)))


def affine_reference(matrix: np.ndarray, shift: np.ndarray) -> Reference:
    """Of |z|^2 with z = W z + b, by W and b."""
    system = np.eye(shift.size) - matrix
    z = np.linalg.solve(system, shift)
    w = np.linalg.solve(system.T, 2 * z)
    return Reference(np.concatenate([np.outer(w, z).ravel(), w]), ROUNDING * CONDITION)


def classifier_reference(params: Any, pixels: Any, labels: Any) -> Reference:
    """Of the mean cross entropy, by features, read-out and recurrence, in the order of their names."""
    pixels, labels = np.asarray(pixels, np.float64), np.asarray(labels)
    matrix = np.asarray(params["recurrence"], np.float64)
    layers = {name: {k: np.asarray(x, np.float64) for k, x in params[name].items()} for name in ("features", "readout")}
    drive = pixels @ layers["features"]["w"] + layers["features"]["b"]
    solved = [_equilibrium(matrix, d) for d in drive]

    def by(z: np.ndarray) -> dict[str, Any]:
        logits = z @ layers["readout"]["w"] + layers["readout"]["b"]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(labels)), labels] -= 1
        shares /= len(labels)
        pulled = [_pulled(matrix, row, c) for row, c in zip(z, shares @ layers["readout"]["w"].T, strict=True)]
        by_drive = np.stack([d for _, d in pulled])
        return {
            "features": {"b": by_drive.sum(0), "w": pixels.T @ by_drive},
            "readout": {"b": shares.sum(0), "w": z.T @ shares},
            "recurrence": sum(m for m, _ in pulled),
        }

    z, step = (np.stack(x) for x in zip(*solved, strict=True))
    return Reference.of_two(by(z), by(z - step))
