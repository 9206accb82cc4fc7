"""Training of stages, priors, readers and CLIP; callbacks, checkpoints, the command line, estimates of its needs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
