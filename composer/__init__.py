"""Composer for everyone: take images apart, recombine the parts, edit within a region."""
