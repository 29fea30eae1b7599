"""Drop-in adjoints for Quadax."""

import quadax


class UnrolledAdjoint(quadax.AbstractAdjoint):
    """Differentiate through the adaptive loop itself: every bisection is part of the graph.

    Use as `quadax.quadgk(..., adjoint=UnrolledAdjoint())`. Quadax's own default differentiates the sum over the final
    mesh, which is the same number at a lower cost; this one is the baseline that other strategies are judged against.
    """

    def quadrature(self, ops, interval, args, consts, kwargs, opts):
        vfunc, interval_t = ops.build(interval, args, consts, safe=True)
        return ops.solve(vfunc, interval_t, kwargs, **opts)
