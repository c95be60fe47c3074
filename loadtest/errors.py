"""What can go wrong with a load test itself, as one tree.

A call that fails is no error but a result.

LoadtestError
├── ScenarioInvalid    a scenario file that can't be read, or says what can't be
├── OptionsClash       options that can't be given together, or that lack one another
├── TargetUnfit        the server can't be tested, or lacks what is asked for
├── ServerFailed       a server that the tool started did not come up, or ended
├── BaseUnfit          no marked adapters can be made for this base
├── WorkerFailed       a process of the load generator ended
└── OutUnwritable      a file of results that can't be written
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
