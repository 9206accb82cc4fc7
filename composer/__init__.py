"""Composer for everyone: take images apart, recombine the parts, edit within a region.

The public names are those of ``__init__.pyi``. They are imported when they are first used, so that the command line can
answer ``--help`` without loading torch. Likewise each room (`composer.data`, `composer.training`, ...) gives its own.
"""

import lazy_loader

from composer import moved

moved.install()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
