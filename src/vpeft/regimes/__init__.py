"""Procedures that call `fit` several times, or never: learning over time."""
