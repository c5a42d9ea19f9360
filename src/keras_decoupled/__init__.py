"""Keras 3 optimizers with independent weight decay: the base learning rate never multiplies it."""

from keras_decoupled import callbacks as callbacks
from keras_decoupled.decay.convert import convert_weight_decay as convert_weight_decay
from keras_decoupled.decay.convert import decay_from_timescale as decay_from_timescale
from keras_decoupled.decay.kinds import Decay as Decay
from keras_decoupled.decay.regularizers import fill_dict_in_order as fill_dict_in_order
from keras_decoupled.decay.regularizers import get_weight_decays as get_weight_decays
from keras_decoupled.layerwise import layerwise_lr_multipliers as layerwise_lr_multipliers
from keras_decoupled.layerwise import layerwise_weight_decays as layerwise_weight_decays
from keras_decoupled.layerwise import no_decay as no_decay
from keras_decoupled.optimizers.adamw import AdamW as AdamW
from keras_decoupled.optimizers.decouple import decouple as decouple
from keras_decoupled.optimizers.muon import Muon as Muon
from keras_decoupled.optimizers.nadamw import NadamW as NadamW
from keras_decoupled.optimizers.ready_made import Adadelta as Adadelta
from keras_decoupled.optimizers.ready_made import Adafactor as Adafactor
from keras_decoupled.optimizers.ready_made import Adagrad as Adagrad
from keras_decoupled.optimizers.ready_made import Adamax as Adamax
from keras_decoupled.optimizers.ready_made import Lamb as Lamb
from keras_decoupled.optimizers.ready_made import Lion as Lion
from keras_decoupled.optimizers.ready_made import RMSprop as RMSprop
from keras_decoupled.optimizers.sgdw import SGDW as SGDW
from keras_decoupled.plots import plot_schedule as plot_schedule
from keras_decoupled.schedule.cosine import CosineWarmRestarts as CosineWarmRestarts
from keras_decoupled.schedule.stable import WarmupStableDecay as WarmupStableDecay
from keras_decoupled.width import width_lr_multipliers as width_lr_multipliers

__all__ = [
    "SGDW",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "AdamW",
    "Adamax",
    "CosineWarmRestarts",
    "Decay",
    "Lamb",
    "Lion",
    "Muon",
    "NadamW",
    "RMSprop",
    "WarmupStableDecay",
    "callbacks",
    "convert_weight_decay",
    "decay_from_timescale",
    "decouple",
    "fill_dict_in_order",
    "get_weight_decays",
    "layerwise_lr_multipliers",
    "layerwise_weight_decays",
    "no_decay",
    "plot_schedule",
    "width_lr_multipliers",
]
__version__ = "0.3.0"
