"""Every error that fedmq raises on purpose, with the exit code it ends in.

    FedmqError 1
    ├── StorageError 1           the disk takes nothing: it is read-only, or failing
    │   └── StorageFullError     there is no room: on the disk, or in a quota
    ├── DamagedError 65          a database is no database any more
    ├── TransferError 1          a blob cannot be had
    ├── UsageError 2             the command line names something that does not exist
    ├── NotFoundError 3          a run, a file or a key that is not there
    ├── UnhealthyError 4         a part is not there, or not ready
    ├── TimedOutError 5          no answer in time
    ├── CommandRefusedError 6    the coordinator does not do what it was told
    ├── PairingError 6           a newcomer was not enrolled; the same on both sides
    ├── AlreadyRunningError 6    another process holds this state directory
    ├── RivalError 6             another coordinator leads this federation
    ├── WireError 65             what came in is not what it should be
    │   ├── DecodeError          not well-formed
    │   └── SignatureError       not signed by whom it should be
    │       ├── OutOfDateError   by a certificate that is not valid now
    │       ├── RevokedError     by a certificate that the root has taken back
    │       └── ForkedError      by the root, and it has said something else before
    ├── DataMissingError 66      a data set is neither here nor to be had
    ├── TransportError 69        the broker cannot be reached, or a port is taken
    ├── TransitionError 70       our bug: a machine was asked for a move it does not have
    └── ConfigError 78           settings that cannot work
        ├── InvitationError      what was scanned or typed is no invitation to a federation
        └── KeysMissingError     this machine holds no key of that participant

What the operator reads under the sentence says what to do: the docstring of the class, or what the raiser knows better
(`advice=`).
Refusing a peer is not an error but a `common.messages.Reason`.
"""

import inspect


class FedmqError(Exception):
    """Something failed; the message says what."""

    exit_code = 1

    def __init__(self, *said: object, advice: str | None = None) -> None:
        super().__init__(*said)
        self._advice = advice

    @property
    def advice(self) -> str:
        """What to do about it: what the raiser says, or else the docstring of the class."""
        return self._advice or inspect.getdoc(type(self)) or ""


class StorageError(FedmqError):
    """Make the disk that holds the state directory writable, or move that directory with --state-dir."""


class DamagedError(FedmqError):
    """Check the disk. Start the part again: it moves the damaged file aside, says so, and begins a new one."""

    exit_code = 65


class StorageFullError(StorageError):
    """Free space on the disk that holds the state directory, or move that directory with --state-dir."""


class TransferError(FedmqError):
    """The other side no longer offers this blob, or gave up sending it; the next task brings a new one."""


class UsageError(FedmqError):
    """Run the command with --help to see what it takes."""

    exit_code = 2


class NotFoundError(FedmqError):
    """Check the name, and the place that the message tells of."""

    exit_code = 3


class UnhealthyError(FedmqError):
    """Start the part that is missing, or wait for it; `fedmq status` shows who is here."""

    exit_code = 4


class TimedOutError(FedmqError):
    """See with `fedmq status` whether the other side is here, and try again."""

    exit_code = 5


class CommandRefusedError(FedmqError):
    """See with `fedmq status` where the run stands."""

    exit_code = 6


class PairingError(FedmqError):
    """Run `fedmq pair invite` again for a new code."""

    exit_code = 6


class AlreadyRunningError(FedmqError):
    """Stop the other process, or give this one a directory of its own with --state-dir."""

    exit_code = 6


class RivalError(FedmqError):
    """Stop one of the two coordinators, or give this one a federation of its own with --federation."""

    exit_code = 6


class WireError(FedmqError):
    """What came in is not what it should be. It was dropped and counted."""

    exit_code = 65


class DecodeError(WireError):
    """The bytes are malformed or exceed a limit. The sender runs something else, or the link spoils data."""


class SignatureError(WireError):
    """The message is not signed by the one it names.

    Either that participant has a new key that this federation did not issue, or someone else publishes
    under its name.
    """


class OutOfDateError(SignatureError):
    """Set the clock of this machine, or give that participant a new certificate: `fedmq keys rotate`."""


class RevokedError(SignatureError):
    """The federation's root has taken that certificate back. Enrol the participant anew: `fedmq pair invite`."""


class ForkedError(SignatureError):
    """Run what the root signs in one place only; `fedmq keys revoke` there joins both lists."""


class DataMissingError(FedmqError):
    """Put the files where the message says, pass --data-dir, or use the embedded data set: --dataset digits."""

    exit_code = 66


class TransportError(FedmqError):
    """Check that the broker runs and that host and port are right; `fedmq broker` starts one."""

    exit_code = 69


class TransitionError(FedmqError):
    """This is a bug in fedmq; please report it with the traceback from the log."""

    exit_code = 70


class ConfigError(FedmqError):
    """Correct the setting that the message names; flags win over FEDMQ_* variables, those over the TOML file."""

    exit_code = 78


class InvitationError(ConfigError):
    """Copy the whole code again, from FEDMQ1: to its end, or ask for a new one: `fedmq pair invite`."""


class KeysMissingError(ConfigError):
    """Enrol this machine: `fedmq pair invite` where the federation's root lives, then `fedmq pair join CODE` here.

    An operator's machine is invited with --role operator.
    Or copy what `fedmq keys export` writes, or say with --keys-dir where the keys are. A federation's root is made by
    `fedmq keys init`, or by its coordinator's first start.
    """


def cause_of(error: BaseException) -> BaseException:
    """Take the one thing that went wrong out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
