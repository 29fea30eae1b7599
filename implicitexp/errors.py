"""What the package raises when it is asked for something that cannot work. Free of jax: the command line reports
these before it imports anything slow."""


class ConfigError(Exception):
    """A configuration, or a call, that cannot work; the message says what to do. Exit status 2."""


class Unsupported(ConfigError):
    """A combination of equation, solver and strategy that is not defined; the message names what would work."""


class OtherKind(Unsupported):
    """A strategy for other kinds of equation."""
