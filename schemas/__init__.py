"""Every event's contract, in one place.

Inside the repository this package is `schemas`; services install it alone, as the wheel `tidemill`.
It imports nothing of the repository outside itself.
"""

from __future__ import annotations

__version__ = "0.1.0"
