"""Noise levels, denoisers, samplers, guidance: what turns a network into a generator."""
