"""Derivatives of roots and fixed points by the implicit function theorem, exact or truncated; drop-ins for Optimistix."""
