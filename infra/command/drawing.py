"""A picture of a job's or a sweep's course, drawn without a display, into the kind that its file says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import InvalidConfiguration

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@contextmanager
def drawn_into(
    file: Path, *, rows: int = 1, columns: int = 1, size_inches: tuple[float, float], share_x: bool = False
) -> Iterator[tuple[Figure, np.ndarray[Any, Any]]]:
    """A figure and its axes (rows, columns), saved at the end of the block.

    Raises:
        InvalidConfiguration: the file is of no kind that can be drawn, or cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size_inches, sharex=share_x, squeeze=False)
    try:
        yield figure, axes
        figure.tight_layout()
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise InvalidConfiguration(f"cannot draw into {file}: {error}") from error
    finally:
        pyplot.close(figure)
