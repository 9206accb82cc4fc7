"""Images as sequences of codes, drawn one after the other (Ramesh et al. 2021, DALL-E)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
