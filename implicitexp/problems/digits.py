"""`ode`, the main job: an image classifier whose middle is an ODE layer."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from implicitexp import solvers
from implicitexp.equations import ODE

from .base import AbstractProblem, as_number
from .digit_images import CLASSES, PIXELS, DigitImages, apply, classified, dense

RESIDUAL_STEPS = 5.0  # of length 1


def field(t, h, weights):
    """f(h): one hidden layer with tanh. The same f is the residual layer's."""
    hidden = jnp.tanh(h @ weights["w1"] + weights["b1"])
    return jnp.tanh(hidden @ weights["w2"] + weights["b2"])


class Digits(AbstractProblem):
    """Handwritten digits, classified by features -> ODE layer -> linear read-out (Chen et al. 2018).

    h(0) = W x + b, dh/dt = f(h, θ), t from 0 to `duration`, logits = V h(t1) + c; the loss is the mean cross
    entropy of a minibatch of randomly shifted images with noise. f(h) = tanh(W2 tanh(W1 h + b1) + b2).
    `layer="residual"`: the same f as h_{k+1} = h_k + f(h_k), five times, which is explicit Euler with step 1 through
    the same `solve`; `layer="identity"`: no layer, for comparison.
    450 of the 1797 images are the test set; they are the same for every seed, and never shifted.
    Source: Chen, Rubanova, Bettencourt, Duvenaud 2018, Neural Ordinary Differential Equations; data Alpaydin and Kaynak.

    Parameters: `features` (w (64, n), b (n,)), `field` (w1, b1, w2, b2; absent with identity), `readout`
    (w (n, 10), b (10,)), n = `width`.
    """

    layer: Literal["ode", "residual", "identity"] = eqx.field(static=True)
    width: int = eqx.field(static=True)  # neurons
    batch_size: int = eqx.field(static=True)  # images an update
    duration: float = eqx.field(converter=as_number)  # no unit, t1 of the ODE layer
    jitter: float = eqx.field(converter=as_number)  # pixels, the largest shift of a training image, in x and in y
    noise: float = eqx.field(converter=as_number)  # of the grey values' range, standard deviation, on training images
    images: DigitImages

    def __init__(
        self,
        layer: Literal["ode", "residual", "identity"] = "ode",
        width: int = 64,
        batch_size: int = 128,
        duration: float = 1.0,
        jitter: float = 0.4,
        noise: float = 0.05,
    ):
        self.layer, self.width, self.batch_size = layer, width, batch_size
        self.duration, self.jitter, self.noise = duration, jitter, noise
        self.images = DigitImages()

    def __check_init__(self):
        if self.layer not in ("ode", "residual", "identity"):
            raise ValueError(f"layer must be ode, residual or identity, not {self.layer!r}.")
        if self.width < 1 or self.batch_size < 1:
            raise ValueError(f"width and batch_size must be at least 1, not {self.width} and {self.batch_size}.")

    def init(self, key):
        keys = jax.random.split(key, 4)
        n = self.width
        params = {"features": dense(keys[0], PIXELS, n), "readout": dense(keys[1], n, CLASSES)}
        if self.layer != "identity":
            first, second = dense(keys[2], n, n), dense(keys[3], n, n)
            params["field"] = {"w1": first["w"], "b1": first["b"], "w2": second["w"], "b2": second["b"]}
        return params

    def batch(self, key):
        """Images drawn with replacement, shifted by up to `jitter` pixels (bilinear), with noise; and their labels."""
        images, labels, _ = self.images.draw(key, self.batch_size, self.jitter, self.noise)
        return images, labels

    def logits(self, params, images, solve):
        """Scores (batch, 10). The batch is one state of the ODE, so that all its images share the steps."""
        h = apply(params["features"], images.reshape(len(images), -1))
        if self.layer == "ode":
            h = solve(ODE(field, h, 0.0, self.duration), params["field"]).value
        elif self.layer == "residual":
            residual = ODE(field, h, 0.0, RESIDUAL_STEPS)
            h = solve(residual, params["field"], solver=solvers.Euler(dt0=1.0, max_steps=16)).value
        return apply(params["readout"], h)

    def loss(self, params, batch, solve):
        images, labels = batch
        loss, accuracy = classified(self.logits(params, images, solve), labels)
        return loss, {"train_accuracy": accuracy}

    def evaluate(self, params, solve):
        return self.images.verdict(self.logits(params, self.images.test, solve))

    def figure(self, params, solve):
        return self.images.figure(self.logits(params, self.images.test, solve))
