"""Callbacks for `fit`: log the rates, save a snapshot for each cycle, restart on a plateau."""

from .plateau import RestartOnPlateau as RestartOnPlateau
from .rates import LogRates as LogRates
from .snapshots import SnapshotEnsemble as SnapshotEnsemble

__all__ = ["LogRates", "RestartOnPlateau", "SnapshotEnsemble"]
