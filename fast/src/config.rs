//! The settings of TLS servers with one certificate.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{KeyLog, ServerConfig};

use crate::errors::credential_reason;

/// The settings for all connections to which one certificate is presented.
#[derive(Clone)]
pub struct Config {
    /// For clients that offer the relay's protocol by ALPN.
    with_alpn: Arc<ServerConfig>,
    /// For all other clients. With a list of protocols, rustls refuses clients that offer only
    /// others; the `ssl` module and Go serve them.
    without_alpn: Arc<ServerConfig>,
}

impl Config {
    /// Make the settings; the error is the reason why that is not possible.
    ///
    /// * `chain`: the certificates to present, leaf first, DER.
    /// * `key`: the leaf's private key, DER of any kind.
    /// * `alpn`: the only protocol that ALPN selects; empty for none.
    /// * `keylog`: gets the secrets of all connections.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        alpn: &str,
        keylog: Option<Arc<dyn KeyLog>>,
    ) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| credential_reason(&e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| credential_reason(&e))?;
        // DERP clients do not resume sessions, and each ticket costs its encryption and a write.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(keylog) = keylog {
            config.key_log = keylog;
        }
        let without_alpn = Arc::new(config.clone());
        if alpn.is_empty() {
            return Ok(Self { with_alpn: Arc::clone(&without_alpn), without_alpn });
        }
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        Ok(Self { with_alpn: Arc::new(config), without_alpn })
    }

    /// The settings for a connection.
    pub(crate) fn choose(&self, alpn: bool) -> Arc<ServerConfig> {
        Arc::clone(if alpn { &self.with_alpn } else { &self.without_alpn })
    }
}

/// All certificates of a PEM text, in order.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| "the chain is not PEM".into())
}

/// The first private key of a PEM text, or a key in DER form.
pub fn private_key(data: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    // DER begins with an ASN.1 SEQUENCE.
    if data.first() == Some(&0x30) {
        return PrivateKeyDer::try_from(data.to_vec()).map_err(str::to_owned);
    }
    PrivateKeyDer::from_pem_slice(data)
        .map_err(|_| "the key is no private key in PEM form, or it is encrypted".into())
}

/// A file of TLS secrets in the format that Wireshark reads (`SSLKEYLOGFILE`).
#[derive(Debug)]
pub struct KeyLogFile(File);

impl KeyLogFile {
    /// Open a file to append to. A new one has mode 0600, as its secrets decrypt connections.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path).map(Self)
    }
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        // One write per line, because other programs may append to the file too. An error, such as
        // a full disk, must not end the connection.
        let _ = (&self.0).write_all(line.as_bytes());
    }
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}
