"""Adjoints of an ODE solve's own steps, drop-ins for Diffrax: `Replay` records them, `Reversible` makes them again."""
