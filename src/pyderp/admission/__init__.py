"""Which clients may log in: by files of keys, the local tailscaled, an admission URL, a function.

Every relay imports `verdict`. It imports `gate` and the sources only if it checks clients.
"""

from __future__ import annotations

from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict

__all__ = ["AdmissionCounters", "Cause", "ClientIdentity", "Verdict"]
