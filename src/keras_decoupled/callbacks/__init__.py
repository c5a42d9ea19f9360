"""Callbacks for `fit`: log the rates, watch updates, save a snapshot for each cycle, restart."""

from .plateau import RestartOnPlateau as RestartOnPlateau
from .rates import LogRates as LogRates
from .snapshots import SnapshotEnsemble as SnapshotEnsemble
from .watch import WatchUpdates as WatchUpdates

__all__ = ["LogRates", "RestartOnPlateau", "SnapshotEnsemble", "WatchUpdates"]
