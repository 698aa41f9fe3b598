"""One paper's score per file; higher is kept."""

from .dass import DaSS
from .magnitude import Magnitude
from .obs import OBS
from .relative_importance import RelativeImportance
from .ria import RIA
from .wanda import Wanda

__all__ = ["OBS", "RIA", "DaSS", "Magnitude", "RelativeImportance", "Wanda"]
