"""The one error of the benchmark."""


class BenchError(Exception):
    """The measurement cannot go on; the text says why and what to do."""
