"""Files: atomic writing, frozen weights, models as folders, and the closed list of what those may name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
