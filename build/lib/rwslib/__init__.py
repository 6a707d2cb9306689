"""Estimators, models, training and evaluation behind the executable book on reweighted wake-sleep."""

__version__ = "0.1.0"
