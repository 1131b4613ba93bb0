"""Who may use a relay: a file of keys, the local tailscaled, an admission URL, a function."""

from __future__ import annotations

from pyderp.admission.allowlist import read_allow_list
from pyderp.admission.gate import Gate
from pyderp.admission.verdict import AdmissionCounters, Applicant, Cause, Verdict

__all__ = ["AdmissionCounters", "Applicant", "Cause", "Gate", "Verdict", "read_allow_list"]
