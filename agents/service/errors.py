"""What the service refuses; importable without what the service needs to run."""

from __future__ import annotations


class ServiceError(ValueError):
    """What was asked for is not possible; the message says why and what to do."""


class LedgerError(ServiceError):
    """A booking is not possible; the message says why."""


class UnknownError(LedgerError):
    """No such campaign or commitment."""


class ClosedError(LedgerError):
    """The commitment has ended: it was settled, released, or its time is over."""


class UnavailableError(RuntimeError):
    """What the service stands on does not work now; the message says what."""
