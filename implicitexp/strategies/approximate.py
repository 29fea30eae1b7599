"""`one_step`, `neumann`, `phantom`, `shine`, `reuse`: implicit differentiation with less than a linear solve, or with the
inverse that the forward solver has, by `implicitexp.adjoints`."""

from typing import Any, ClassVar

import equinox as eqx

from implicitexp.adjoints.implicit import fixed_points

from .drop_in import AbstractDropIn

ALGEBRAIC = ("root", "fixed_point")


class OneStep(AbstractDropIn):
    """The derivative of one iteration at the solution (Bolte, Pauwels and Vaiter 2023): wrong by the contraction; Newton's is
    the implicit one."""

    name: ClassVar[str] = "one_step"
    kinds: ClassVar[tuple[str, ...]] = ALGEBRAIC
    exact: ClassVar[bool] = False

    def adjoint(self) -> Any:
        return fixed_points.OneStep()


class Neumann(AbstractDropIn):
    """The first `terms` terms of the Neumann series of the inverse: wrong by the contraction to that power."""

    terms: int = eqx.field(static=True, default=10)
    name: ClassVar[str] = "neumann"
    kinds: ClassVar[tuple[str, ...]] = ALGEBRAIC
    exact: ClassVar[bool] = False

    def adjoint(self) -> Any:
        return fixed_points.Neumann(terms=self.terms)


class Phantom(AbstractDropIn):
    """`steps` damped iterations at the solution (Geng et al. 2021)."""

    steps: int = eqx.field(static=True, default=10)
    damping: Any = 0.5
    name: ClassVar[str] = "phantom"
    kinds: ClassVar[tuple[str, ...]] = ALGEBRAIC
    exact: ClassVar[bool] = False

    def adjoint(self) -> Any:
        return fixed_points.Phantom(steps=self.steps, damping=self.damping)


class Shine(AbstractDropIn):
    """The inverse that the forward solver has built (Ramzi et al. 2022), with `refine` steps of a Krylov solve."""

    refine: int = eqx.field(static=True, default=0)
    name: ClassVar[str] = "shine"
    kinds: ClassVar[tuple[str, ...]] = ALGEBRAIC
    exact: ClassVar[bool] = False

    def adjoint(self) -> Any:
        return fixed_points.Shine(self.refine)


class Reuse(AbstractDropIn):
    """The implicit derivative by a Krylov solve that the forward solver's own inverse preconditions."""

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "reuse"
    kinds: ClassVar[tuple[str, ...]] = ALGEBRAIC

    def adjoint(self) -> Any:
        return fixed_points.Reuse(self.rtol, self.atol, self.max_steps)
