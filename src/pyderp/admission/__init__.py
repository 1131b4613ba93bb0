"""Who may use a relay: a file of keys, the local tailscaled, an admission URL, a function."""

from __future__ import annotations

from pyderp.admission.allowlist import read_allow_list
from pyderp.admission.gate import Gate
from pyderp.admission.verdict import AdmissionCounters, Cause, ClientIdentity, Verdict

__all__ = ["AdmissionCounters", "Cause", "ClientIdentity", "Gate", "Verdict", "read_allow_list"]
