"""trainscope: diagnostics and auditing for training runs."""

__version__ = "0.1.0"
