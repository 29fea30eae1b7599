"""torchdiffeq's gradients: Lotka-Volterra, the MLP field, the main job's update. In the environment that `setup` makes."""
# pyright: reportMissingImports=false

import torch
from loop import serve
from torchdiffeq import odeint, odeint_adjoint


def tensors(data):
    return {name: torch.from_numpy(x) for name, x in data.items() if x.dtype.kind in "fi"}


def solved(field, start, t, data, adjoint):
    """y at the end. `field` is a module whose parameters the adjoint method differentiates."""
    tolerance = float(data["tolerance"])
    solve = odeint_adjoint if adjoint else odeint
    times = torch.tensor([0.0, float(data["end"])], dtype=t)
    return solve(field, start, times, rtol=tolerance, atol=tolerance, method=str(data["method"]))[-1]


def by_autograd(loss, parameters):
    def run():
        for p in parameters:
            p.grad = None
        value = loss()
        value.backward()
        return value.detach(), [p.grad for p in parameters]

    return run


# -- cases 1 and 2 --------------------------------------------------------------------------------------------------------


class LotkaVolterra(torch.nn.Module):
    def __init__(self, rates):
        super().__init__()
        self.rates = torch.nn.Parameter(rates)

    def forward(self, t, y):
        a, b, c, d = self.rates
        both = y[0] * y[1]
        return torch.stack([a * y[0] - b * both, d * both - c * y[1]])


def lotka_volterra(adjoint):
    def prepare(data):
        field = LotkaVolterra(torch.from_numpy(data["rates"]))
        start = torch.from_numpy(data["start"]).requires_grad_()

        def loss():
            return (solved(field, start, torch.float64, data, adjoint) ** 2).sum()

        return by_autograd(loss, [field.rates, start])

    return prepare


# -- cases 3 and 4 --------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """tanh(y w1 + b1) w2 + b2, or the tanh of that."""

    def __init__(self, b1, b2, w1, w2, outer):
        super().__init__()
        self.b1, self.b2, self.w1, self.w2 = (torch.nn.Parameter(x) for x in (b1, b2, w1, w2))
        self.outer = outer

    def forward(self, t, y):
        y = torch.tanh(y @ self.w1 + self.b1) @ self.w2 + self.b2
        return torch.tanh(y) if self.outer else y


def mlp(adjoint):
    def prepare(data):
        x = tensors(data)
        field = Network(x["b1"], x["b2"], x["w1"], x["w2"], outer=False)
        start = x["start"].requires_grad_()

        def loss():
            return (solved(field, start, torch.float32, data, adjoint) ** 2).sum(-1).mean()

        return by_autograd(loss, [field.b1, field.b2, field.w1, field.w2, start])

    return prepare


def digits(adjoint):
    """Value, gradient and a step of AdamW, from the same parameters each time."""

    def prepare(data):
        x = tensors(data)
        field = Network(*(x[f"field_{name}"] for name in ("b1", "b2", "w1", "w2")), outer=True)
        layers = [torch.nn.Parameter(x[n]) for n in ("features_b", "features_w", "readout_b", "readout_w")]
        b, w, c, v = layers
        parameters = [b, w, field.b1, field.b2, field.w1, field.w2, c, v]
        first = [p.detach().clone() for p in parameters]
        rate = float(data["learning_rate"])
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
        pixels, labels = x["pixels"], x["labels"].long()

        def loss():
            h = solved(field, pixels @ w + b, torch.float32, data, adjoint)
            return torch.nn.functional.cross_entropy(h @ v + c, labels)

        gradient = by_autograd(loss, parameters)

        def run():
            with torch.no_grad():
                for p, start in zip(parameters, first, strict=True):
                    p.copy_(start)
            found = gradient()
            optimizer.step()
            return found

        return run

    return prepare


if __name__ == "__main__":
    kinds = {"lotka_volterra": lotka_volterra, "mlp": mlp, "digits": digits}
    tasks = {f"{name}{end}": kind(end != "") for name, kind in kinds.items() for end in ("", "_adjoint")}
    serve(tasks)
