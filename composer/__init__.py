"""Composer for everyone: take images apart, recombine the parts, edit within a region.

The public names are those of ``__init__.pyi``. They are imported when they are first used, so that the command line can
answer ``--help`` without loading torch. Likewise each room (`composer.data`, `composer.training`, ...) gives its own.
"""

from typing import Any

import lazy_loader

from composer import mistakes, moved

moved.install()
_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

INSTEAD = {"load": 'Cascade.load("scenes256")', "open": 'model.open("photo.png"), model.decompose("photo.png")'}
INSTEAD |= {"sample": 'model.sample(caption="a red cube")', "decompose": 'model.decompose("photo.png")'}
INSTEAD |= {"Model": "Cascade", "Pipeline": "Cascade", "save": 'images.save("out.png")'}
"""Names that people look for here -> what there is instead."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used.

    Raises:
        AttributeError: There is no such name.
    """
    try:
        return _get(name)
    except AttributeError as error:
        if name.startswith("_"):
            raise
        says = f"; there is {INSTEAD[name]}" if name in INSTEAD else mistakes.did_you_mean(name, __all__)
        raise AttributeError(f"composer has no {name}{says}") from error
