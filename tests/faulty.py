"""Strategies with a planted fault, by which it is tested that a check would see one."""

import equinox as eqx
import jax

from implicitexp.strategies.base import AbstractCell, AbstractStrategy

# How large the error of the worst component is at least.
FAULTS = {"sign": 2.0, "boundary": 1e-2, "parameter": 1.0, "scale": 0.01}


class Faulty(AbstractStrategy):
    """Another strategy, whose pullback is wrong: `sign`: minus; `boundary`: nothing for y0, t0, t1 or the limits;
    `parameter`: nothing for args; `scale`: 1 % too large."""

    inner: AbstractStrategy
    fault: str = eqx.field(static=True)

    def cell(self, kind, solver):
        return FaultyCell(self.inner.cell(kind, solver), self.fault)


class FaultyCell(AbstractCell):
    inner: AbstractCell
    fault: str = eqx.field(static=True)

    def linearize(self, split):
        value, stats, residuals = self.inner.linearize(split)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(split.call())]
        inputs = [("args" if paths[i][0].name == "args" else paths[i][1].name) for i in split.where]
        return value, stats, (residuals, tuple(inputs))

    def push(self, residuals, tangents):
        return self.inner.push(residuals[0], tangents)

    def pull(self, residuals, cotangent):
        moved, backward = self.inner.pull(residuals[0], cotangent)
        if self.fault == "sign":
            moved = [-x for x in moved]
        elif self.fault == "scale":
            moved = [1.01 * x for x in moved]
        else:
            dropped = ("args",) if self.fault == "parameter" else ENDS
            moved = [0 * x if name in dropped else x for x, name in zip(moved, residuals[1], strict=True)]
        return moved, backward


ENDS = ("y0", "t0", "t1", "lower", "upper")
