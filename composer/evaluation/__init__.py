"""Measuring: adherence, distributions, things; choosing the best of several; reports."""
