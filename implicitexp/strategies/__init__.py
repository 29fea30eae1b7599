"""The gradient strategies: one file a strategy, each a value that maps a kind of equation to a cell."""

from .adjoint import Adjoint as Adjoint
from .base import MAX_PARAMETERS as MAX_PARAMETERS
from .base import AbstractStrategy as AbstractStrategy
from .finite_difference import FiniteDifference as FiniteDifference
from .forward import Forward as Forward
from .forward import ProgramTangent as ProgramTangent
from .implicit import Implicit as Implicit
from .per_kind import PerKind as PerKind
from .unroll import Unroll as Unroll
