"""The gradient strategies: one file a strategy, each a value that maps a kind of equation to a cell."""

from .adjoint import Adjoint as Adjoint
from .approximate import Neumann as Neumann
from .approximate import OneStep as OneStep
from .approximate import Phantom as Phantom
from .approximate import Reuse as Reuse
from .approximate import Shine as Shine
from .base import MAX_PARAMETERS as MAX_PARAMETERS
from .base import AbstractStrategy as AbstractStrategy
from .finite_difference import FiniteDifference as FiniteDifference
from .forward import Forward as Forward
from .forward import ProgramTangent as ProgramTangent
from .implicit import Implicit as Implicit
from .of_kinds import AbstractOfKinds as AbstractOfKinds
from .of_kinds import Backsolve as Backsolve
from .of_kinds import ForwardSensitivity as ForwardSensitivity
from .of_kinds import FrozenMesh as FrozenMesh
from .of_kinds import Gauss as Gauss
from .of_kinds import Iterated as Iterated
from .of_kinds import Leibniz as Leibniz
from .of_kinds import Truncated as Truncated
from .over_steps import Interpolating as Interpolating
from .over_steps import Replay as Replay
from .over_steps import Reversible as Reversible
from .per_kind import PerKind as PerKind
from .unroll import Unroll as Unroll
