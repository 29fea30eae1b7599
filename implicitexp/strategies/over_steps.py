"""`replay`, `reversible`, `interpolating`: the adjoints of an ODE that Diffrax has not, by `implicitexp.adjoints`."""

from typing import Any, ClassVar

import equinox as eqx

from implicitexp.adjoints.continuous import interpolating
from implicitexp.adjoints.discrete import replay, reversible
from implicitexp.solvers.base import PLAIN, Loop

from .drop_in import AbstractDropIn
from .implicit import Implicit, StepsCell


class Replay(AbstractDropIn):
    """The accepted steps, recorded and walked backwards: the gradient of `unroll`, in less time to run and to compile.

    `store`: what is kept of a step, its start (`steps`) or its stages too (`stages`), or a number of states, between which
    the steps are done again; `auto` keeps 64 states, of an implicit method 128 or all that fit into 128 KiB, its stages if they
    fit into 1 MiB.

    Source: A. Sandu 2006, "On the properties of Runge-Kutta discrete adjoints".
    """

    store: str | int = eqx.field(static=True, default="auto")
    name: ClassVar[str] = "replay"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)

    def plain(self):
        return Implicit() if self.store == "auto" else self

    def defined(self, kind, solver):
        if self.store == "auto":  # what cannot be walked is refused by the adjoint itself
            return StepsCell(Loop(adjoint=self.adjoint()))
        return super().defined(kind, solver)

    def adjoint(self) -> Any:
        return replay.Replay(self.store)  # pyright: ignore[reportArgumentType]  it says itself what it takes

    def forward(self, loop):
        return PLAIN  # the same program


class Reversible(AbstractDropIn):
    """The solver's reversible form, made again backwards from its end: a few states are kept, at twice the stages.

    The forward solve is another one, of the same order and with a larger error. `coupling` in (0, 1] (None: chosen for each
    step by the tolerance) and `checkpoints`: see `implicitexp.adjoints.Reversible`.

    Source: S. McCallum and J. Foster 2024, arXiv 2410.11648.
    """

    coupling: float | None = eqx.field(static=True, default=None)
    checkpoints: int = eqx.field(static=True, default=16)
    name: ClassVar[str] = "reversible"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)
    exact: ClassVar[bool] = False

    def adjoint(self) -> Any:
        return reversible.Reversible(self.coupling, self.checkpoints)

    def forward(self, loop):
        return None


class Interpolating(AbstractDropIn):
    """The continuous adjoint with the parameters in its error test, the state from the forward steps: n + p unknowns.

    `rtol`, `atol`, `max_steps`: of the backward solve (None: the forward solver's). `adjoint` has no (n + p)-sized matrix.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "interpolating"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)

    def adjoint(self) -> Any:
        return interpolating.Interpolating(self.rtol, self.atol, max_steps=self.max_steps)
