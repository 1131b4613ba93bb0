"""The client without `async`: for scripts, notebooks and threads.

`pyderp.blocking.Client` is `pyderp.Client` with calls that wait. All such clients of a process
share one background thread with an event loop of its own. The first call starts the thread, and
the end of the process stops it. So these clients work where a loop runs already, as in a notebook.
"""

from __future__ import annotations

from pyderp.blocking.client import Client, SealedPeer

__all__ = ["Client", "SealedPeer"]
