"""Continuous adjoints and sensitivities of an ODE: the rules themselves, the framework's calls of them, and drop-ins for
Diffrax (`diffrax_*`)."""
