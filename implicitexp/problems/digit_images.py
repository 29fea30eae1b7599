"""What the classifiers of handwritten digits share: the images and their jitter, the loss, and the figure of the answer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from implicitexp import data

from .base import array

TEST_ROWS = 450
SPLIT_SEED = 0  # of the fixed choice of test rows, which is the same for every seed of a run
CLASSES = 10
PIXELS = 64


class DigitImages(eqx.Module):
    """The 1797 images, 450 of which are the test set; they are the same for every seed, and never shifted.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI.
    """

    train: Float[Array, "1347 8 8"]  # 0 (white) to 1 (black)
    train_labels: Int[Array, "1347"]
    test: Float[Array, "450 8 8"]
    test_labels: Int[Array, "450"]

    def __init__(self):
        images, labels = data.digits()
        order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        test, train = order[:TEST_ROWS], order[TEST_ROWS:]
        self.train, self.train_labels = array(images[train] / 16), jnp.asarray(labels[train], jnp.int32)
        self.test, self.test_labels = array(images[test] / 16), jnp.asarray(labels[test], jnp.int32)

    def draw(
        self, key: PRNGKeyArray, size: int, jitter: float | Array, noise: float | Array
    ) -> tuple[Float[Array, "size 8 8"], Int[Array, " size"], Int[Array, " size"]]:
        """Training images, drawn with replacement, shifted by up to `jitter` pixels (bilinear), with noise of that
        standard deviation -> images, labels, and which rows they are."""
        pick, shift, grain = jax.random.split(key, 3)
        rows = jax.random.randint(pick, (size,), 0, self.train_labels.shape[0])
        images = self.train[rows]
        shifts = jax.random.uniform(shift, (size, 2), images.dtype, -1, 1) * jitter
        images = jax.vmap(shifted)(images, shifts)
        images = images + noise * jax.random.normal(grain, images.shape, images.dtype)
        return images, self.train_labels[rows], rows

    def verdict(self, logits: Float[Array, "450 10"]) -> dict[str, Scalar]:
        """Accuracy and mean cross entropy on the test set."""
        loss, accuracy = classified(logits, self.test_labels)
        return {"test_accuracy": accuracy, "test_loss": loss}

    def figure(self, logits: Float[Array, "450 10"]):
        """The confusion matrix of the test set, and the first twelve images that are classified wrongly."""
        from matplotlib.figure import Figure

        labels, answers = np.asarray(self.test_labels), np.asarray(jnp.argmax(logits, axis=1))
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        left, right = np.ravel(figure.subfigures(1, 2, squeeze=False))
        left.suptitle(f"Test set: {np.mean(labels == answers):.2%} of {len(labels)} images right")
        _confusion(left.subplots(), labels, answers)
        right.suptitle("Wrong answers (true → answer), 8 x 8 pixels")
        wrong = np.flatnonzero(labels != answers)
        for i, axes in enumerate(right.subplots(3, 4).flat):
            axes.set_axis_off()
            if i < len(wrong):
                axes.imshow(self.test[wrong[i]], cmap="gray_r")
                axes.set_title(f"{labels[wrong[i]]} → {answers[wrong[i]]}", fontsize="small")
        return figure


def dense(key: PRNGKeyArray, rows: int, columns: int) -> dict[str, Array]:
    """First parameters of x @ w + b: w normal with deviation 1/sqrt(rows), b zero."""
    return {"w": jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows), "b": jnp.zeros(columns)}


def apply(layer: dict[str, Array], x: Float[Array, "batch rows"]) -> Float[Array, "batch columns"]:
    """x @ w + b."""
    return x @ layer["w"] + layer["b"]


def classified(logits: Float[Array, "batch 10"], labels: Int[Array, " batch"]) -> tuple[Scalar, Scalar]:
    """-> mean cross entropy, accuracy."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(logits.dtype))


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


def _confusion(axes, labels, answers):
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (labels, answers), 1)
    axes.imshow(counts, cmap="gray_r", norm="symlog")
    for i, j in zip(*np.nonzero(counts), strict=True):
        axes.text(
            j, i, counts[i, j], ha="center", va="center", fontsize="x-small", color="0.0" if counts[i, j] < 9 else "1.0"
        )
    axes.set(xlabel="answer (digit)", ylabel="label (digit)", xticks=range(CLASSES), yticks=range(CLASSES))
