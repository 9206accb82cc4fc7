from .agreement import Agreement as Agreement
from .caption import Caption as Caption
from .semantics import Semantics as Semantics
from .tokens import Tokens as Tokens
