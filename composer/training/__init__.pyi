from .clip import ClipTraining as ClipTraining
from .prior import PriorTraining as PriorTraining
from .reader import ReaderTraining as ReaderTraining
from .stage import PATIENCE as PATIENCE
from .stage import StageTraining as StageTraining
from .stage import log as log
from .stage import rate as rate
from .stage import stream as stream
