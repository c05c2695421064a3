"""Keeping a set of processes running: start, watch, restart with back-off, stop in order.

Knows processes, heartbeats and goodbyes; knows no service. `rhizome.launch_server` tells it what to run.
"""

from rhizome.supervisor.child import ProcessSpec
from rhizome.supervisor.restarts import RestartPolicy
from rhizome.supervisor.supervisor import Supervisor
from rhizome.supervisor.unit import StartFailed, UnitSpec

__all__ = ["ProcessSpec", "RestartPolicy", "StartFailed", "Supervisor", "UnitSpec"]
