"""replib: reproducible replications of interpretability papers."""

__version__ = "0.1.0"
