"""SUNDIALS' CVODES with its adjoint module, through sundials4py; the functions that it calls are NumPy's.

lambda' = -J^T lambda backwards with the quadratures (df/dp)^T lambda under error control, y by Hermite interpolation between
checkpoints: the user's guide of CVODES, chapter on adjoint sensitivity analysis.
"""
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Callable

import numpy as np
from loop import serve
from sundials4py import core, cvodes

STEPS_KEPT = 500  # between two checkpoints
MOST = 1_000_000  # steps


@dataclasses.dataclass(frozen=True)
class Problem:
    """y' = f(y, p). All take y as an array; `pulled` is (df/dp)^T lambda."""

    start: np.ndarray
    end: float
    tolerance: float
    parameters: int
    slope: Callable
    jacobian: Callable
    pulled: Callable
    stiff: bool


def checked(status):
    flag = status[0] if isinstance(status, tuple) else status
    if flag < 0:
        raise RuntimeError(f"CVODES returned {flag}")
    return status


def vector(values, context):
    v = core.N_VNew_Serial(len(values), context)
    core.N_VGetArrayPointer(v)[:] = values
    return v


def dense(v, n, context):
    matrix = core.SUNDenseMatrix(n, n, context)
    return core.SUNLinSol_Dense(v, matrix, context), matrix


def gradient(problem):
    """-> run() -> |y(end)|^2, its gradient by p and by the start."""
    get, n, tolerance = core.N_VGetArrayPointer, problem.start.size, problem.tolerance
    method = cvodes.CV_BDF if problem.stiff else cvodes.CV_ADAMS

    def forward(t, y, out, _):
        get(out)[:] = problem.slope(get(y))
        return 0

    def forward_jacobian(t, y, f, matrix, *_):
        core.SUNDenseMatrix_Data(matrix)[:] = problem.jacobian(get(y))
        return 0

    def backward(t, y, adjoint, out, _):
        get(out)[:] = -(get(adjoint) @ problem.jacobian(get(y)))
        return 0

    def backward_jacobian(t, y, adjoint, f, matrix, *_):
        core.SUNDenseMatrix_Data(matrix)[:] = -problem.jacobian(get(y)).T
        return 0

    def quadrature(t, y, adjoint, out, _):
        get(out)[:] = np.negative(problem.pulled(get(y), get(adjoint)))
        return 0

    def run():
        _, context = core.SUNContext_Create(core.SUN_COMM_NULL)
        y = vector(problem.start, context)
        memory = cvodes.CVodeCreate(method, context)
        solver = memory.get()
        checked(cvodes.CVodeInit(solver, forward, 0.0, y))
        checked(cvodes.CVodeSStolerances(solver, tolerance, tolerance))
        linear, matrix = dense(y, n, context)
        checked(cvodes.CVodeSetLinearSolver(solver, linear, matrix))
        checked(cvodes.CVodeSetJacFn(solver, forward_jacobian))
        checked(cvodes.CVodeSetMaxNumSteps(solver, MOST))
        checked(cvodes.CVodeAdjInit(solver, STEPS_KEPT, cvodes.CV_HERMITE))
        checked(cvodes.CVodeF(solver, problem.end, y, cvodes.CV_NORMAL))
        found = np.array(get(y))

        adjoint, total = vector(2 * found, context), vector(np.zeros(problem.parameters), context)
        _, which = checked(cvodes.CVodeCreateB(solver, method))
        checked(cvodes.CVodeInitB(solver, which, backward, problem.end, adjoint))
        checked(cvodes.CVodeSStolerancesB(solver, which, tolerance, tolerance))
        linear_back, matrix_back = dense(adjoint, n, context)
        checked(cvodes.CVodeSetLinearSolverB(solver, which, linear_back, matrix_back))
        checked(cvodes.CVodeSetJacFnB(solver, which, backward_jacobian))
        checked(cvodes.CVodeSetMaxNumStepsB(solver, which, MOST))
        checked(cvodes.CVodeQuadInitB(solver, which, quadrature, total))
        checked(cvodes.CVodeSetQuadErrConB(solver, which, 1))
        checked(cvodes.CVodeQuadSStolerancesB(solver, which, tolerance, tolerance))
        checked(cvodes.CVodeB(solver, 0.0, cvodes.CV_NORMAL))
        checked(cvodes.CVodeGetB(solver, which, adjoint))
        checked(cvodes.CVodeGetQuadB(solver, which, total))
        return found @ found, [np.array(get(total)), np.array(get(adjoint))]

    return run


def lotka_volterra(data):
    a, b, c, d = data["rates"].tolist()

    def jacobian(y):
        u, v = y.tolist()
        return np.array([[a - b * v, -b * u], [d * v, d * u - c]])

    def slope(y):
        u, v = y.tolist()
        return a * u - b * u * v, d * u * v - c * v

    def pulled(y, adjoint):
        (u, v), (p, q) = y.tolist(), adjoint.tolist()
        return u * p, -u * v * p, -v * q, u * v * q

    end, tolerance = float(data["end"]), float(data["tolerance"])
    return gradient(Problem(data["start"], end, tolerance, 4, slope, jacobian, pulled, stiff=False))


def robertson(data):
    k1, k2, k3 = np.exp(data["log_rates"]).tolist()

    def jacobian(y):
        _, v, w = y.tolist()
        return np.array([[-k1, k3 * w, k3 * v], [k1, -2 * k2 * v - k3 * w, -k3 * v], [0, 2 * k2 * v, 0]])

    def slope(y):
        u, v, w = y.tolist()
        slow, fast, back = k1 * u, k2 * v**2, k3 * v * w
        return back - slow, slow - fast - back, fast

    def pulled(y, adjoint):
        (u, v, w), (p, q, r) = y.tolist(), adjoint.tolist()
        slow, fast, back = k1 * u, k2 * v**2, k3 * v * w
        return slow * (q - p), fast * (r - q), back * (p - q)

    end, tolerance = float(data["end"]), float(data["tolerance"])
    return gradient(Problem(data["start"], end, tolerance, 3, slope, jacobian, pulled, stiff=True))


def brusselator(data):
    feed, removal = data["feed"], data["removal"]
    cells = feed.size
    scale = float(data["diffusion"]) * (cells + 1) ** 2
    diffusion = scale * (np.eye(cells, k=1) - 2 * np.eye(cells) + np.eye(cells, k=-1))
    linear = np.kron(np.eye(2), diffusion)
    edge = np.zeros(2 * cells)
    edge[[0, cells - 1]], edge[[cells, -1]] = scale * 1.0, scale * 3.0
    diagonal = np.arange(cells)

    def slope(y):
        u, v = y[:cells], y[cells:]
        made = u**2 * v
        return linear @ y + edge + np.concatenate([feed + made - (removal + 1) * u, removal * u - made])

    def jacobian(y):
        u, v = y[:cells], y[cells:]
        matrix = linear.copy()
        matrix[diagonal, diagonal] += 2 * u * v - removal - 1
        matrix[diagonal, cells + diagonal] = u**2
        matrix[cells + diagonal, diagonal] = removal - 2 * u * v
        matrix[cells + diagonal, cells + diagonal] -= u**2
        return matrix

    def pulled(y, adjoint):
        p, q = adjoint[:cells], adjoint[cells:]
        return np.concatenate([p, y[:cells] * (q - p)])

    end, tolerance = float(data["end"]), float(data["tolerance"])
    return gradient(Problem(data["start"], end, tolerance, 2 * cells, slope, jacobian, pulled, stiff=True))


if __name__ == "__main__":
    serve({"lotka_volterra": lotka_volterra, "robertson": robertson, "brusselator": brusselator})
