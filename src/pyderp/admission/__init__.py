"""Who may use a relay: a file of keys, the local tailscaled, an admission URL, a function.

`verdict` alone is part of every relay; `gate` and what it asks are imported where one is made.
"""

from __future__ import annotations

from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict

__all__ = ["AdmissionCounters", "Cause", "ClientIdentity", "Verdict"]
