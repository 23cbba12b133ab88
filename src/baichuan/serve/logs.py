"""What the server writes to standard error: its log, and a line of JSON for each request."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from baichuan.serve.guard import access_log

#: Kinds of lines that are remembered.
_MOST_KINDS = 1000


class OncePerSecond(logging.Filter):
    """Let one record a second through of each kind, so that no client can fill the disk.

    A kind is a place in the code with the first line of its message, before arguments are put in.
    The next record of the kind says how many were left out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is written."""
        kind = record.pathname, record.lineno, str(record.msg).partition("\n")[0]
        now = self._clock()
        latest, left_out = self._kinds.get(kind, (now - 1, 0))
        if now - latest < 1:
            self._kinds[kind] = latest, left_out + 1
            return False
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out:,} more like this)"
            record.args = ()
        return True


def set_up_logs() -> None:
    """Send log and access log to standard error."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    lines.addFilter(OncePerSecond())
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    requests = logging.StreamHandler(sys.stderr)
    requests.setFormatter(logging.Formatter("%(message)s"))
    access_log.handlers = [requests]
    access_log.propagate = False
