"""`per_kind`: a strategy for each kind of equation."""

from .adjoint import Adjoint
from .base import AbstractCell, AbstractStrategy
from .implicit import Implicit


class PerKind(AbstractStrategy):
    """Another strategy for each kind of equation, for a loss that solves several."""

    root: AbstractStrategy = Implicit()
    fixed_point: AbstractStrategy = Implicit()
    ode: AbstractStrategy = Adjoint()
    integral: AbstractStrategy = Implicit()

    def cell(self, kind, solver) -> AbstractCell:
        return self._chosen()[kind].cell(kind, solver)

    def drawn(self, key) -> AbstractStrategy:
        return PerKind(**{kind: strategy.drawn(key) for kind, strategy in self._chosen().items()})

    def _chosen(self) -> dict[str, AbstractStrategy]:
        return {"root": self.root, "fixed_point": self.fixed_point, "ode": self.ode, "integral": self.integral}
