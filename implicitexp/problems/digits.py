"""`ode`, the main job: an image classifier whose middle is an ODE layer."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from implicitexp import data, solvers
from implicitexp.equations import ODE

from .base import AbstractProblem, array, as_number

TEST_ROWS = 450
SPLIT_SEED = 0  # of the fixed choice of test rows, which is the same for every seed of a run
CLASSES = 10
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
    train_images: Float[Array, "1347 8 8"]  # 0 (white) to 1 (black)
    train_labels: Int[Array, "1347"]
    test_images: Float[Array, "450 8 8"]
    test_labels: Int[Array, "450"]

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
        images, labels = data.digits()
        order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        test, train = order[:TEST_ROWS], order[TEST_ROWS:]
        self.train_images, self.train_labels = array(images[train] / 16), jnp.asarray(labels[train], jnp.int32)
        self.test_images, self.test_labels = array(images[test] / 16), jnp.asarray(labels[test], jnp.int32)

    def __check_init__(self):
        if self.layer not in ("ode", "residual", "identity"):
            raise ValueError(f"layer must be ode, residual or identity, not {self.layer!r}.")
        if self.width < 1 or self.batch_size < 1:
            raise ValueError(f"width and batch_size must be at least 1, not {self.width} and {self.batch_size}.")

    def init(self, key):
        keys = jax.random.split(key, 4)
        n, pixels = self.width, self.train_images[0].size

        def matrix(key, rows, columns):
            return jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)

        params = {
            "features": {"w": matrix(keys[0], pixels, n), "b": jnp.zeros(n)},
            "readout": {"w": matrix(keys[1], n, CLASSES), "b": jnp.zeros(CLASSES)},
        }
        if self.layer != "identity":
            params["field"] = {
                "w1": matrix(keys[2], n, n),
                "b1": jnp.zeros(n),
                "w2": matrix(keys[3], n, n),
                "b2": jnp.zeros(n),
            }
        return params

    def batch(self, key):
        """Images drawn with replacement, shifted by up to `jitter` pixels (bilinear), with noise; and their labels."""
        pick, shift, noise = jax.random.split(key, 3)
        rows = jax.random.randint(pick, (self.batch_size,), 0, self.train_labels.shape[0])
        images = self.train_images[rows]
        shifts = jax.random.uniform(shift, (self.batch_size, 2), images.dtype, -1, 1) * self.jitter
        images = jax.vmap(shifted)(images, shifts)
        return images + self.noise * jax.random.normal(noise, images.shape, images.dtype), self.train_labels[rows]

    def logits(self, params, images, solve):
        """Scores (batch, 10). The batch is one state of the ODE, so that all its images share the steps."""
        flat = images.reshape(len(images), -1)
        h = flat @ params["features"]["w"] + params["features"]["b"]
        if self.layer == "ode":
            h = solve(ODE(field, h, 0.0, self.duration), params["field"]).value
        elif self.layer == "residual":
            residual = ODE(field, h, 0.0, RESIDUAL_STEPS)
            h = solve(residual, params["field"], solver=solvers.Euler(dt0=1.0, max_steps=16)).value
        return h @ params["readout"]["w"] + params["readout"]["b"]

    def loss(self, params, batch, solve):
        images, labels = batch
        logits = self.logits(params, images, solve)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, {"train_accuracy": _accuracy(logits, labels)}

    def evaluate(self, params, solve):
        logits = self.logits(params, self.test_images, solve)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, self.test_labels).mean()
        return {"test_accuracy": _accuracy(logits, self.test_labels), "test_loss": loss}

    def figure(self, params, solve):
        """The confusion matrix of the test set, and the first twelve images that are classified wrongly."""
        from matplotlib.figure import Figure

        labels = np.asarray(self.test_labels)
        answers = np.asarray(jnp.argmax(self.logits(params, self.test_images, solve), axis=1))
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        left, right = np.ravel(figure.subfigures(1, 2, squeeze=False))
        left.suptitle(f"Test set: {np.mean(labels == answers):.2%} of {len(labels)} images right")
        _confusion(left.subplots(), labels, answers)
        right.suptitle("Wrong answers (true → answer), 8 x 8 pixels")
        wrong = np.flatnonzero(labels != answers)
        for i, axes in enumerate(right.subplots(3, 4).flat):
            axes.set_axis_off()
            if i < len(wrong):
                axes.imshow(self.test_images[wrong[i]], cmap="gray_r")
                axes.set_title(f"{labels[wrong[i]]} → {answers[wrong[i]]}", fontsize="small")
        return figure


def shifted(image, shift):
    """An image (8, 8) moved by `shift` = (rows, columns) pixels, |shift| <= 1, bilinear; white comes in at the edge."""
    for axis in (0, 1):
        amount = shift[axis]
        padded = jnp.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)])
        size = image.shape[axis]
        before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
        after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
        weight = jnp.abs(amount)
        image = (1 - weight) * image + weight * jnp.where(amount > 0, before, after)
    return image


def _accuracy(logits, labels):
    return jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype))


def _confusion(axes, labels, answers):
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (labels, answers), 1)
    axes.imshow(counts, cmap="gray_r", norm="symlog")
    for i, j in zip(*np.nonzero(counts), strict=True):
        axes.text(
            j, i, counts[i, j], ha="center", va="center", fontsize="x-small", color="0.0" if counts[i, j] < 9 else "1.0"
        )
    axes.set(xlabel="answer (digit)", ylabel="label (digit)", xticks=range(CLASSES), yticks=range(CLASSES))
