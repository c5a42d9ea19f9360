"""AdamW, NadamW and SGDW for Keras 3 with weight decay that the learning rate does not scale."""

from .decay.regularizers import fill_dict_in_order as fill_dict_in_order
from .decay.regularizers import get_weight_decays as get_weight_decays
from .optimizers.adamw import AdamW as AdamW
from .optimizers.nadamw import NadamW as NadamW
from .optimizers.sgdw import SGDW as SGDW
from .schedule.cosine import CosineWarmRestarts as CosineWarmRestarts

__all__ = [
    "SGDW",
    "AdamW",
    "CosineWarmRestarts",
    "NadamW",
    "fill_dict_in_order",
    "get_weight_decays",
]
__version__ = "0.1.0"
