"""Errors of a load test itself, as one tree. A failed call is a result, not an error.

LoadtestError
├── ScenarioInvalid    a scenario file can't be read or has invalid values
├── OptionsClash       options exclude or require one another
├── TargetUnfit        the server can't be tested or lacks adapters
├── ServerFailed       a server that the tool started did not come up, or ended
├── BaseUnfit          no marked adapters can be made for this base
├── WorkerFailed       a process of the load generator ended
└── OutUnwritable      a result file can't be written
"""

from typing import ClassVar


class LoadtestError(Exception):
    """Root of the tree; the message says what happened and what to do next."""

    code: ClassVar[str] = "loadtest_error"


class ScenarioInvalid(LoadtestError):
    code = "scenario_invalid"


class OptionsClash(LoadtestError):
    code = "options_clash"


class TargetUnfit(LoadtestError):
    code = "target_unfit"


class ServerFailed(LoadtestError):
    code = "server_failed"


class BaseUnfit(LoadtestError):
    code = "base_unfit"


class WorkerFailed(LoadtestError):
    code = "worker_failed"


class OutUnwritable(LoadtestError):
    code = "out_unwritable"
