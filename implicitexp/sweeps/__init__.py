"""Sweeps: jobs in processes of their own, and one table, one file, one figure and one parent run over all of them.

Nothing here imports JAX or Hydra, but what the fork server of `processes` imports for its jobs.
"""
