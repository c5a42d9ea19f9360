"""AdamW, NadamW and SGDW for Keras 3 with weight decay that the learning rate does not scale."""

from ._adamw import AdamW as AdamW
from ._nadamw import NadamW as NadamW
from ._regularizers import fill_dict_in_order as fill_dict_in_order
from ._regularizers import get_weight_decays as get_weight_decays
from ._schedules import CosineWarmRestarts as CosineWarmRestarts
from ._sgdw import SGDW as SGDW

__all__ = [
    "SGDW",
    "AdamW",
    "CosineWarmRestarts",
    "NadamW",
    "fill_dict_in_order",
    "get_weight_decays",
]
__version__ = "0.1.0"
