"""What the fork server imports before it forks: everything slow that a job needs.

Nothing here may compute with JAX: a backend has threads, which a fork does not take along.
"""

import matplotlib.backends.backend_agg  # noqa: F401  a first figure would take half a second for it

import implicitexp.__main__
import implicitexp.compare
import implicitexp.device
import implicitexp.problems
import implicitexp.recipe
import implicitexp.solvers
import implicitexp.strategies
import implicitexp.training  # noqa: F401
