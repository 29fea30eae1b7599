"""CasADi's gradient of Robertson's kinetics: its interface to CVODES, in reverse mode."""
# pyright: reportMissingImports=false

import casadi as ca
import numpy as np
from loop import serve


def robertson(data):
    y, p = ca.SX.sym("y", 3), ca.SX.sym("p", 3)
    k = ca.exp(p)
    slow, fast, back = k[0] * y[0], k[1] * y[1] ** 2, k[2] * y[1] * y[2]
    ode = {"x": y, "p": p, "ode": ca.vertcat(back - slow, slow - fast - back, fast)}
    tolerance = float(data["tolerance"])
    options = {"reltol": tolerance, "abstol": tolerance, "max_num_steps": 1_000_000}
    solve = ca.integrator("solve", "cvodes", ode, 0.0, float(data["end"]), options)
    start, log_rates = ca.MX.sym("start", 3), ca.MX.sym("log_rates", 3)
    value = ca.sumsqr(solve(x0=start, p=log_rates)["xf"])
    arguments = [log_rates, start]
    both = ca.Function("both", arguments, [value, *(ca.gradient(value, x) for x in arguments)])
    given = [data["log_rates"], data["start"]]

    def run():
        found, *gradient = both(*given)
        return float(found), [np.array(g) for g in gradient]

    return run


if __name__ == "__main__":
    serve({"robertson": robertson})
