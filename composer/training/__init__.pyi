from .clip import ClipTraining as ClipTraining
from .prior import PriorTraining as PriorTraining
from .reader import ReaderTraining as ReaderTraining
from .safety import PATIENCE as PATIENCE
from .safety import SafeTraining as SafeTraining
from .schedule import Schedule as Schedule
from .stage import StageTraining as StageTraining
from .stage import stream as stream
