"""Derivatives of integrals: drop-ins for Quadax."""
