"""Linear solvers for Lineax."""
