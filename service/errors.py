"""Every fault that thinnet names, as one tree; each knows its HTTP status.

    ThinnetError                     500
    ├── BadRequest                   400  what was asked cannot be done
    │   ├── InvalidInput                  a value, shape, type or name of the inputs
    │   ├── InvalidPlan                   a variant, rate or site that does not fit
    │   │   └── NoActiveSite              nothing would be random, so the variance would be a false 0
    │   ├── InvalidQuantity               a quantity that this output does not have
    │   ├── InvalidFactory                a `package.module:factory` that gives no network
    │   ├── InvalidWeights                a file that is not plain weights, or not this network's
    │   └── RunChanged                    a run to go on with is of other rows, another model or other parameters
    ├── Unauthorized                 401  no API key, or one that is not known
    ├── NotFound                     404
    │   ├── ModelNotFound
    │   └── VersionNotFound
    ├── TooSlow                      408  the body did not arrive in time
    ├── TooLarge                     413  past a limit that the message names
    │   ├── TargetTooLong            414
    │   └── HeadersTooLarge          431
    ├── TooManyRequests              429  a key is past its share; `retry_after_s` says when to ask again
    │   └── Overloaded               429  the server is past its own; likewise
    ├── InvalidSettings              500  what the server was told cannot be, at its start
    ├── NotWritten                   500  a result that cannot be written: no room, no permission, another run
    ├── RemoteFault                  502  another server that does not answer, or not as agreed
    │   └── ServerUnreachable             it is not there, or the connection to it was lost
    ├── NotReady                     503
    │   ├── Draining                      the server is about to end; likewise
    │   └── OutOfMemory                   a device has no room, not even for one pass
    ├── DeadlineExceeded             504  the time that a request was given is over
    └── ModelFault                   500  a model that cannot be served
        ├── CaptureFailed                 the network cannot be read as a graph
        ├── UnclaimedRandomness           a random operation that no site accounts for
        ├── ImpureGraph                   an effect that cannot be proven away
        ├── SelfCheckFailed               a fast path disagrees with the whole graph
        ├── InvalidModelFolder            model.toml or the layout on disk
        └── UnsafeArchive                 a file that would do more than compute

It does not know HTTP beyond that number and the header that names the class, nor who reads the message: a message says
what, where, and the cure.
"""

from typing import ClassVar

FAULT = "X-Thinnet-Fault"


class ThinnetError(Exception):
    """Any fault that thinnet names.

    Attributes:
        status: Its HTTP status.
        retry_after_s: When asking again may help; None where it will not, or nobody knows.
        request_id: Under which id a server's log has the request that it refused; None where none did.
    """

    status: ClassVar[int] = 500
    retry_after_s: float | None = None
    request_id: str | None = None


class BadRequest(ThinnetError):
    """What was asked cannot be done."""

    status = 400


class InvalidInput(BadRequest):
    """The inputs do not fit the model."""


class InvalidPlan(BadRequest):
    """The variant, its parameters or its sites do not fit the network."""


class NoActiveSite(InvalidPlan):
    """Nothing would be random: every pass would give the same answer."""


class InvalidQuantity(BadRequest):
    """The quantity is unknown, or this output does not have it."""


class InvalidFactory(BadRequest):
    """The factory cannot be imported or called, or returns no network."""


class InvalidWeights(BadRequest):
    """The file is not plain weights that can be read safely, or they are not this network's."""


class RunChanged(BadRequest):
    """A run that was begun had other rows, another model or other parameters."""


class Unauthorized(ThinnetError):
    """The request has no API key, or one that is not known."""

    status = 401


class NotFound(ThinnetError):
    """The thing named in the request does not exist."""

    status = 404


class ModelNotFound(NotFound):
    """No model of this name is served."""


class VersionNotFound(NotFound):
    """The model exists, this version of it does not."""


class TooSlow(ThinnetError):
    """The request's body did not arrive in time."""

    status = 408


class TooLarge(ThinnetError):
    """The request is past a limit, which the message names."""

    status = 413


class TargetTooLong(TooLarge):
    """The request's path and query are past their limit."""

    status = 414


class HeadersTooLarge(TooLarge):
    """The request's headers are past their limit."""

    status = 431


class TooManyRequests(ThinnetError):
    """A key is past its share of the server.

    Args:
        message: What, where, cure.
        retry_after_s: When there will be room.
    """

    status = 429

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(TooManyRequests):
    """The server has as much to do as it takes on."""


class InvalidSettings(ThinnetError):
    """What the server was told cannot be."""


class NotWritten(ThinnetError):
    """A result cannot be written: there is no room, no permission, or another run writes it."""


class RemoteFault(ThinnetError):
    """Another server does not answer, or not as agreed."""

    status = 502


class ServerUnreachable(RemoteFault):
    """No server is there, or the connection to it was lost."""


class NotReady(ThinnetError):
    """The model is not ready to answer."""

    status = 503


class Draining(NotReady):
    """The server finishes what it accepted, takes nothing new, and ends."""

    retry_after_s = 1.0


class OutOfMemory(NotReady):
    """The device has no memory for what is asked, however little of it runs at once."""


class DeadlineExceeded(ThinnetError):
    """The time that a request was given is over."""

    status = 504


class ModelFault(ThinnetError):
    """The model itself cannot be served."""


class CaptureFailed(ModelFault):
    """The network cannot be read as a graph."""


class UnclaimedRandomness(ModelFault):
    """A random operation stands in the graph and no site accounts for it."""


class ImpureGraph(ModelFault):
    """The graph has an effect that cannot be proven away."""


class SelfCheckFailed(ModelFault):
    """A fast path disagrees with the whole graph."""


class InvalidModelFolder(ModelFault):
    """The model folder on disk is not as it should be."""


class UnsafeArchive(ModelFault):
    """The file would do more than compute, or is not what its checksum says."""
