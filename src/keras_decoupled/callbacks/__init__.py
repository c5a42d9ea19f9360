"""Callbacks for `fit`: rates in the logs, a snapshot at each cycle's end, restarts on a plateau."""

from .plateau import RestartOnPlateau as RestartOnPlateau
from .rates import LogRates as LogRates
from .snapshots import SnapshotEnsemble as SnapshotEnsemble

__all__ = ["LogRates", "RestartOnPlateau", "SnapshotEnsemble"]
