"""The problems that come with the package, one file each."""

from .base import AbstractProblem
from .brachistochrone import Brachistochrone
from .deep_equilibrium import DeepEquilibrium
from .digits import Digits
from .equilibrium import Equilibrium
from .exponential import Exponential
from .kepler import Kepler
from .lotka_volterra import LotkaVolterra
from .old_faithful import OldFaithful
from .pendulum import Pendulum
from .power_flow import PowerFlow
from .ridge import Ridge
from .robertson import Robertson

__all__ = [
    "AbstractProblem",
    "Brachistochrone",
    "DeepEquilibrium",
    "Digits",
    "Equilibrium",
    "Exponential",
    "Kepler",
    "LotkaVolterra",
    "OldFaithful",
    "Pendulum",
    "PowerFlow",
    "Ridge",
    "Robertson",
]
