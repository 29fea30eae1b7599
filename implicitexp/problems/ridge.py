"""`fixed_point_ridge`: the hyper-parameter of a ridge regression, through its inner gradient descent."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicitexp import data
from implicitexp.equations import FixedPoint

from .base import AbstractProblem, array, as_number, one_axes

FOLDS = 4  # every fourth patient is held out
FIGURE_RANGE = (-8.0, 3.0)  # of log λ


class Ridge(AbstractProblem):
    """The strength λ of a ridge regression on the diabetes data that predicts held-out patients best.

    Inner problem: w minimizes |X w - y|²/2n + λ |w|²/2 over the training rows, by gradient descent, whose fixed point is
    w = w - η (Xᵀ(X w - y)/n + λ w), η = 2 / (largest + smallest eigenvalue of XᵀX/n + 2 λ). Outer loss: the mean
    squared error on held-out rows. Columns are scaled to mean 0, deviation 1 of the training rows, and the target too,
    so that 1 is the loss of a constant.
    Closed form: w = (XᵀX/n + λ)⁻¹ Xᵀy/n. The iteration contracts by (c - 1)/(c + 1), c the condition of XᵀX/n + λ:
    0.66 at λ = 1, 0.93 at the optimum, λ = 0.16.
    Source: Efron, Hastie, Johnstone, Tibshirani 2004 (data); Bengio 2000, Gradient-Based Optimization of
    Hyperparameters.

    Parameter: `log_strength`, log λ (no unit), a scalar.
    """

    strength: float = eqx.field(converter=as_number)  # no unit, λ at the start
    gram: Float[Array, "10 10"]  # XᵀX/n of the training rows
    moment: Float[Array, "10"]  # Xᵀy/n
    held_out: Float[Array, "110 10"]
    progression: Float[Array, "110"]  # of the held-out patients, in training deviations
    eigenvalues: Float[Array, "2"]  # smallest and largest of the Gram matrix

    def __init__(self, strength: float = 1.0):
        self.strength = strength
        inputs, target = data.diabetes()
        held = np.arange(len(target)) % FOLDS == FOLDS - 1
        inputs = (inputs - inputs[~held].mean(0)) / inputs[~held].std(0)
        target = (target - target[~held].mean()) / target[~held].std()
        gram = inputs[~held].T @ inputs[~held] / np.sum(~held)
        self.gram = array(gram)
        self.moment = array(inputs[~held].T @ target[~held] / np.sum(~held))
        self.held_out, self.progression = array(inputs[held]), array(target[held])
        self.eigenvalues = array(np.linalg.eigvalsh(gram)[[0, -1]])

    def init(self, key):
        return {"log_strength": jnp.log(jnp.asarray(self.strength))}

    def weights(self, log_strength, solve):
        """The inner solution w (10,), one weight a column."""

        def descend(w, args):
            strength, gram, moment, eigenvalues = args
            step = 2 / (eigenvalues[0] + eigenvalues[1] + 2 * strength)
            return w - step * (gram @ w + strength * w - moment)

        args = (jnp.exp(log_strength), self.gram, self.moment, self.eigenvalues)
        return solve(FixedPoint(descend, jnp.zeros_like(self.moment)), args).value

    def exact_weights(self, log_strength):
        """w by the normal equations."""
        return jnp.linalg.solve(
            self.gram + jnp.exp(log_strength) * jnp.eye(len(self.gram), dtype=self.gram.dtype), self.moment
        )

    def held_out_error(self, weights):
        """The mean squared error on held-out rows, in variances of the training target."""
        return jnp.mean((self.held_out @ weights - self.progression) ** 2)

    def loss(self, params, batch, solve):
        return self.held_out_error(self.weights(params["log_strength"], solve))

    def exact_loss(self, params, batch):
        return self.held_out_error(self.exact_weights(params["log_strength"]))

    def evaluate(self, params, solve):
        return {"strength": jnp.exp(params["log_strength"]), "held_out_error": self.loss(params, None, solve)}

    def figure(self, params, solve):
        figure, axes = one_axes(
            "Ridge regression on the diabetes data", "strength λ (no unit)", "held-out mean squared error (variances)"
        )
        logs = np.linspace(*FIGURE_RANGE, 111)
        axes.semilogx(np.exp(logs), [float(self.exact_loss({"log_strength": x}, None)) for x in logs], "-", color="0.0",
                      label="normal equations")  # fmt: skip
        here = float(params["log_strength"])
        axes.plot(
            [np.exp(here)],
            [float(self.loss(params, None, solve))],
            "o",
            color="0.4",
            label=f"found: λ = {np.exp(here):.4f}",
        )
        axes.legend()
        return figure
