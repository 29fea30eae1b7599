"""Our gradients beside those of the libraries that people use, in 14 cases: `python -m benchmarks.peers`.

`cases.py` says what a case is; `ode_*.py`, `roots.py`, `fixed_points.py`, `integrals.py` hold them; `timing.py` measures,
`foreign/` has what runs in a process beside ours (torch, CVODES, CasADi), `verdict.py` and `table.py` say how it came out,
`figure.py` draws it. `setup` in this folder makes the environment that torch needs.
"""
