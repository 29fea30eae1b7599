"""How the ground truth is computed: solves of SciPy on the host, tight solves in JAX, pairs of them, and witnesses."""
