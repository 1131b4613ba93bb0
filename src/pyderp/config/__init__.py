"""The settings of a relay, and every rule about them.

Each rule stands once: those about one setting in `rules`, those about several where the settings
stand. A `ConfigError` names its settings, and the command line shows flags or lines for them.
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
