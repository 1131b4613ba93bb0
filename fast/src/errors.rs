//! The texts of errors, which stay the same in later versions.

use rustls::{CertificateError, Error, InconsistentKeys, PeerIncompatible, PeerMisbehaved};

/// The client sent too many records without data.
pub const BRINGS_NOTHING: &str = "records that bring nothing";
/// The client sent an HTTP request without TLS.
pub const PLAIN_HTTP: &str = "plain HTTP on the TLS port";
/// The client's first bytes are neither TLS nor HTTP.
pub const NOT_TLS: &str = "no TLS";
/// There is a bug in this crate or in one that it uses.
pub const INTERNAL: &str = "internal error in the TLS engine";
/// The client's handshake is larger than that of any real client.
pub const TOO_LARGE: &str = "the handshake is too large";
/// `seal` was called before the end of the handshake, or after the end of the session.
pub const NOT_ESTABLISHED: &str = "the handshake is not over";

/// The client does not offer TLS 1.2 or newer.
pub const OLD_VERSION: &str = "the client speaks neither TLS 1.2 nor 1.3";

/// The text of an error in a session.
pub fn reason(error: &Error) -> String {
    match error {
        Error::PeerMisbehaved(
            PeerMisbehaved::TooManyKeyUpdateRequests
            | PeerMisbehaved::TooManyEmptyFragments
            | PeerMisbehaved::TooManyWarningAlertsReceived
            | PeerMisbehaved::TooManyRenegotiationRequests,
        ) => BRINGS_NOTHING.into(),
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            // Every client of TLS 1.2 sends this extension, and rustls notices its absence before
            // it looks at the version.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => OLD_VERSION.into(),
        Error::PeerIncompatible(why) => format!("incompatible client: {}", words(why)),
        Error::PeerMisbehaved(why) => format!("misbehaving client: {}", words(why)),
        Error::InvalidMessage(why) => format!("corrupt message: {}", words(why)),
        Error::AlertReceived(alert) => format!("alert from the client: {}", words(alert)),
        Error::InappropriateMessage { got_type, .. } => {
            format!("unexpected message: {}", words(got_type))
        }
        Error::InappropriateHandshakeMessage { got_type, .. } => {
            format!("unexpected message: {}", words(got_type))
        }
        Error::DecryptError => "a record that cannot be decrypted".into(),
        Error::PeerSentOversizedRecord => "a record that is too long".into(),
        Error::NoApplicationProtocol => "no application protocol in common".into(),
        other => other.to_string(),
    }
}

/// The text of an error in a certificate or its key.
pub fn credential_reason(error: &Error) -> String {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            "the key does not belong to the certificate".into()
        }
        Error::InvalidCertificate(CertificateError::BadEncoding) => {
            "the certificate is not well formed".into()
        }
        Error::InvalidCertificate(why) => format!("the certificate is refused: {}", words(why)),
        Error::NoCertificatesPresented => "there is no certificate".into(),
        Error::General(why) => format!("the key is refused: {why}"),
        other => other.to_string(),
    }
}

/// Turn `NoCipherSuitesInCommon` into "no cipher suites in common".
fn words(name: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    let mut before = ' ';
    for letter in format!("{name:?}").chars() {
        if letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
            text.push(' ');
        }
        text.push(letter.to_ascii_lowercase());
        before = letter;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words() {
        use rustls::AlertDescription;
        assert_eq!(
            reason(&Error::AlertReceived(AlertDescription::UnknownCA)),
            "alert from the client: unknown ca"
        );
        assert_eq!(
            reason(&PeerIncompatible::NoCipherSuitesInCommon.into()),
            "incompatible client: no cipher suites in common"
        );
    }
}
