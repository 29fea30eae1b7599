"""`fixed_point`: an image classifier whose hidden layer is the equilibrium of a network without end."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from implicitexp.equations import FixedPoint

from .base import AbstractProblem, as_number
from .digit_images import CLASSES, PIXELS, DigitImages, apply, classified, dense

SQUARINGS = 6  # of W'W: the bound is at most n^(1/256) too large, 1.6 % for n = 64
FIRST_SCALE = 0.4  # of W: the largest singular value of a normal matrix is near 2, so that W starts below 1


class DeepEquilibrium(AbstractProblem):
    """Handwritten digits, classified by a deep equilibrium network (Bai, Kolter, Koltun 2019).

    z = tanh(W z + U x + b), logits = V z + c; the loss is the mean cross entropy of a minibatch of randomly shifted
    images with noise. `layer="feedforward"`: z = tanh(U x + b), the same network without W, for comparison.
    `spectral_norm` s keeps the largest singular value of W at s or below: the layer is W min(1, s / `spectral_bound`),
    and since tanh has no slope above 1, z is the only fixed point and the iteration contracts by s; None leaves W free.
    `warm_start`: each solve starts from the z that this training image had when it was last drawn, else from zero. It
    changes z by the solver's tolerance. Its jitter and noise were others then, so that it saves one step of 17 only;
    with images that stay as they are (`jitter=0 noise=0`) 8 of 17 at the end (`benchmarks/warm_start.py`).
    450 of the 1797 images are the test set; they are the same for every seed, and never shifted.
    Source: Bai, Kolter, Koltun 2019, Deep Equilibrium Models; data Alpaydin and Kaynak.

    Parameters: `features` (w (64, n), b (n,)), `recurrence` (W, (n, n); absent with feedforward), `readout` (w (n, 10),
    b (10,)), n = `width`.
    """

    layer: Literal["fixed_point", "feedforward"] = eqx.field(static=True)
    width: int = eqx.field(static=True)  # neurons
    batch_size: int = eqx.field(static=True)  # images an update
    spectral_norm: Any = eqx.field(converter=as_number)  # no unit, largest of W, below 1; None: free
    warm_start: bool = eqx.field(static=True)
    jitter: float = eqx.field(converter=as_number)  # pixels, the largest shift of a training image, in x and in y
    noise: float = eqx.field(converter=as_number)  # of the grey values' range, standard deviation, on training images
    images: DigitImages

    def __init__(
        self,
        layer: Literal["fixed_point", "feedforward"] = "fixed_point",
        width: int = 64,
        batch_size: int = 128,
        spectral_norm: float | None = 0.9,
        warm_start: bool = False,
        jitter: float = 0.4,
        noise: float = 0.05,
    ):
        self.layer, self.width, self.batch_size = layer, width, batch_size
        self.spectral_norm, self.warm_start = spectral_norm, warm_start
        self.jitter, self.noise = jitter, noise
        self.images = DigitImages()

    def __check_init__(self):
        if self.layer not in ("fixed_point", "feedforward"):
            raise ValueError(f"layer must be fixed_point or feedforward, not {self.layer!r}.")
        if self.width < 1 or self.batch_size < 1:
            raise ValueError(f"width and batch_size must be at least 1, not {self.width} and {self.batch_size}.")
        if isinstance(self.spectral_norm, float) and not 0 < self.spectral_norm < 1:
            raise ValueError(f"spectral_norm must be between 0 and 1, or null (free), not {self.spectral_norm}.")

    def init(self, key):
        keys = jax.random.split(key, 3)
        n = self.width
        params: dict[str, Any] = {"features": dense(keys[0], PIXELS, n), "readout": dense(keys[1], n, CLASSES)}
        if self.layer == "fixed_point":
            params["recurrence"] = FIRST_SCALE * dense(keys[2], n, n)["w"]
        return params

    def batch(self, key):
        """Images drawn with replacement, shifted by up to `jitter` pixels (bilinear), with noise; labels and rows."""
        images, labels, rows = self.images.draw(key, self.batch_size, self.jitter, self.noise)
        return {"images": images, "labels": labels, "rows": rows}

    # -- the memory of a warm start: z of each training image ---------------------------------------------------------

    def memory(self):
        """z of every training image (1347, n), zero for those that were not drawn yet; None without a warm start."""
        if not (self.warm_start and self.layer == "fixed_point"):
            return None
        return jnp.zeros((len(self.images.train), self.width), self.images.train.dtype)

    def recall(self, memory, batch):
        return batch | {"start": memory[batch["rows"]]}

    def remember(self, memory, batch, found):
        """An image that was drawn twice writes its last z twice: the order of writing must not matter."""
        rows = batch["rows"]
        same = rows[:, None] == rows[None, :]
        last = jnp.max(jnp.where(same, jnp.arange(len(rows)), 0), axis=1)
        return memory.at[rows].set(found[last])

    # -- the network --------------------------------------------------------------------------------------------------

    def recurrence(self, params):
        """W as it is used, its spectral norm limited."""
        w = params["recurrence"]
        if self.spectral_norm is None:
            return w
        return w * jnp.minimum(1, self.spectral_norm / spectral_bound(w))

    def hidden(self, params, images, start, solve):
        """z (batch, n). The batch is one state of the fixed point, so that all its images share the iterations."""
        drive = apply(params["features"], images.reshape(len(images), -1))
        if self.layer == "feedforward":
            return jnp.tanh(drive)
        equation = FixedPoint(lambda z, args: jnp.tanh(z @ args[0].T + args[1]), start)
        return solve(equation, (self.recurrence(params), drive)).value

    def logits(self, params, images, solve):
        """Scores (batch, 10), from a cold start."""
        start = jnp.zeros((len(images), self.width), images.dtype)
        return apply(params["readout"], self.hidden(params, images, start, solve))

    def loss(self, params, batch, solve):
        images = batch["images"]
        start = batch.get("start", jnp.zeros((len(images), self.width), images.dtype))
        z = self.hidden(params, images, start, solve)
        loss, accuracy = classified(apply(params["readout"], z), batch["labels"])
        return loss, {"train_accuracy": accuracy}, z

    def evaluate(self, params, solve):
        return self.images.verdict(self.logits(params, self.images.test, solve))

    def figure(self, params, solve):
        return self.images.figure(self.logits(params, self.images.test, solve))


def spectral_bound(w: Float[Array, "n n"]) -> Scalar:
    """An upper bound of the largest singular value of W, smooth, tight to n^(1/256): its Schatten norm of order 256.

    |W|₂² <= |G^m|_F^(1/m), G = W'W, m = 2^SQUARINGS by repeated squaring, scaled at each so that nothing overflows.
    Products only: the derivative of a singular value decomposition took 20 times as long as the rest of an update.
    """
    gram = w.T @ w
    logarithm = jnp.zeros((), w.dtype)
    for k in range(SQUARINGS):
        size = jnp.linalg.norm(gram)
        logarithm += jnp.log(size) / 2**k
        gram = (gram / size) @ (gram / size)
    logarithm += jnp.log(jnp.linalg.norm(gram)) / 2**SQUARINGS
    return jnp.exp(logarithm / 2)
