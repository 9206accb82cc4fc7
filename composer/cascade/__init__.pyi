from .cascade import STREAM as STREAM
from .cascade import Cascade as Cascade
from .low_res import LowRes as LowRes
from .parts import Latent as Latent
from .parts import Parts as Parts
from .stage import Sampling as Sampling
from .stage import Stage as Stage
