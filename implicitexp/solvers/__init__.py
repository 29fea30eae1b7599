"""The configured solvers, one class a method; `Auto` has one for every kind of equation."""

from .algebraic import Anderson as Anderson
from .algebraic import Dogleg as Dogleg
from .algebraic import Newton as Newton
from .algebraic import Picard as Picard
from .anderson import AndersonAcceleration as AndersonAcceleration
from .auto import SOLVERS as SOLVERS
from .auto import Auto as Auto
from .auto import for_kind as for_kind
from .auto import kinds_of as kinds_of
from .base import AbstractSolver as AbstractSolver
from .integral import GaussKronrod as GaussKronrod
from .integral import TanhSinh as TanhSinh
from .ode import Dopri8 as Dopri8
from .ode import Euler as Euler
from .ode import Kvaerno5 as Kvaerno5
from .ode import Tsit5 as Tsit5
