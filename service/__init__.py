"""thinnet: the mean and the variance of a network's stochastic passes.

Names are resolved on first use, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.prediction import Prediction
    from service.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'service' has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(f"service.{name.lower()}"), name)
