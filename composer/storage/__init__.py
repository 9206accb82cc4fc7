"""Files: atomic writing, frozen weights, model folders, and the list of classes that they may name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
