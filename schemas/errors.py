"""The error tree: what went wrong decides who may try again.

    TidemillError
    ├── Rejected              this input will never be accepted: dead letter, never retried
    ├── Retryable             the same call may succeed later: back off and try again
    └── InvalidConfiguration  nothing can start until a person changes a setting or a file

Every message names the thing and the way out.
"""

from __future__ import annotations


class TidemillError(Exception):
    """Base of every error that Tidemill raises on purpose."""


class Rejected(TidemillError):
    """The input can never be accepted; it goes to a dead letter or is refused, and is not retried."""


class Retryable(TidemillError):
    """The surroundings failed, not the input: the same call may succeed later."""


class InvalidConfiguration(TidemillError):
    """A setting, a declaration or a file is wrong; nothing was started."""
