from .building import Buildable as Buildable
from .building import build as build
from .folder import digest as digest
from .folder import read_model as read_model
from .folder import write_model as write_model
from .loading import load_strictly as load_strictly
