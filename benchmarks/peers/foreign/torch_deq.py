"""TorchDEQ's gradients of deep equilibria, by implicit differentiation. In the environment that `setup` makes."""
# pyright: reportMissingImports=false

import torch
from loop import serve
from torchdeq import get_deq

MOST = 1000  # iterations
SOLVERS = {"anderson": "anderson", "fixed_point": "fixed_point_iter"}


def equilibrium(solver, tolerance):
    """Both solves to the tolerance, on the norm of the residual of each row."""
    deq = get_deq(
        ift=True,
        f_solver=SOLVERS[solver],
        b_solver=SOLVERS[solver],
        f_tol=tolerance,
        b_tol=tolerance,
        f_max_iter=MOST,
        b_max_iter=MOST,
    )
    deq.train()
    return deq


def by_autograd(loss, parameters):
    def run():
        for p in parameters:
            p.grad = None
        value = loss()
        value.backward()
        return value.detach(), [p.grad for p in parameters]

    return run


def large(solver):
    def prepare(data):
        matrix, shift = (torch.from_numpy(data[n]).requires_grad_() for n in ("matrix", "shift"))
        deq = equilibrium(solver, float(data["tolerance"]))
        start = torch.zeros((1, len(data["shift"])), dtype=torch.float64)

        def loss():
            z, _ = deq(lambda z: torch.tanh(z @ matrix.T + shift), start)
            return (z[-1] ** 2).sum()

        return by_autograd(loss, [matrix, shift])

    return prepare


def classifier(solver):
    def prepare(data):
        x = {name: torch.from_numpy(a) for name, a in data.items() if a.dtype.kind in "fi"}
        names = ("features_b", "features_w", "readout_b", "readout_w", "recurrence")
        parameters = [x[name].requires_grad_() for name in names]
        b, w, c, v, matrix = parameters
        pixels, labels = x["pixels"], x["labels"].long()
        deq = equilibrium(solver, float(data["tolerance"]))

        def loss():
            drive = pixels @ w + b
            z, _ = deq(lambda z: torch.tanh(z @ matrix.T + drive), torch.zeros_like(drive))
            return torch.nn.functional.cross_entropy(z[-1] @ v + c, labels)

        return by_autograd(loss, parameters)

    return prepare


if __name__ == "__main__":
    kinds = {"large": large, "classifier": classifier}
    serve({f"{name}_{solver}": kind(solver) for name, kind in kinds.items() for solver in SOLVERS})
