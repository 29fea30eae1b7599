"""Every exact strategy on every closed-form case, in both precisions: `python -m benchmarks.accuracy`.

`subjects.py` has what is judged, `condition.py` the condition of each case, `measure.py` what is computed, `judge.py` when it
is right, `misses.py` the misses that are known, with the reason of each; `rows.py`, `report.py` and `figure.py` say how it
came out.
"""
