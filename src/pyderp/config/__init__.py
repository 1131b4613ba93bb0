"""The settings of a relay, and all rules about them.

Each rule exists once: those about one setting in `rules`, those about several settings beside the
settings. A `ConfigError` names its settings, and the command line replaces the names by flags or
lines of the file.
"""

from pyderp.config.relay import (
    AdmissionConfig,
    BootstrapDNSConfig,
    DebugAccess,
    Decide,
    HealthRecipients,
    RelayConfig,
)
from pyderp.config.tls import ACMETLS, ManualTLS, TLSSettings

__all__ = ["ACMETLS", "AdmissionConfig", "BootstrapDNSConfig", "DebugAccess", "Decide"]
__all__ += ["HealthRecipients", "ManualTLS", "RelayConfig", "TLSSettings"]
