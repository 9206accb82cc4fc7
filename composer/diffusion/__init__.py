"""Noise levels, denoisers, samplers, guidance: from a network to a generative model."""
