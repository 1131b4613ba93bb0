//! An ordinary TLS client, and one that encrypts records that no real client sends.
//!
//! The key of `derp.test` is for tests only; no program trusts it.

#![allow(dead_code, missing_docs)]

use std::io::{Read, Write};
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey, AES_128_GCM};
use pyderp_fast::config::{certificates, private_key, Config};
use pyderp_fast::session::Session;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs as provider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, DigitallySignedStruct, Error,
    SignatureScheme, SupportedProtocolVersion,
};

pub const APPLICATION: u8 = 23;
pub const HANDSHAKE: u8 = 22;
pub const ALERT: u8 = 21;
pub const CHANGE_CIPHER_SPEC: u8 = 20;

const CERTIFICATE: &[u8] = include_bytes!("certificate.pem");
const KEY: &[u8] = include_bytes!("key.pem");

pub fn config() -> Config {
    let chain = certificates(CERTIFICATE).unwrap();
    Config::new(chain, private_key(KEY).unwrap(), "http/1.1", None).unwrap()
}

pub fn session() -> Session {
    Session::new(&config(), false).unwrap()
}

/// Feed bytes in one read; return the plain bytes.
pub fn feed(session: &mut Session, data: &[u8]) -> Vec<u8> {
    let mut room = vec![0; session.room_for(data.len())];
    let filled = session.feed(&mut data.to_vec(), &mut room);
    room.truncate(filled);
    room
}

pub fn seal(session: &mut Session, chunks: &[&[u8]]) -> Vec<u8> {
    let size = session.sealed_size(chunks.iter().map(|chunk| chunk.len()).sum());
    let mut room = vec![0; size];
    let sealed = session.seal(chunks, &mut room);
    room.truncate(sealed.written);
    room.extend_from_slice(&sealed.rest);
    room
}

pub struct Client {
    pub tls: ClientConnection,
}

impl Client {
    pub fn new(version: &'static SupportedProtocolVersion) -> Self {
        Self::with_protocols(version, &[])
    }

    pub fn with_protocols(version: &'static SupportedProtocolVersion, protocols: &[&str]) -> Self {
        Self::with_groups(version, protocols, provider::DEFAULT_KX_GROUPS)
    }

    pub fn with_groups(
        version: &'static SupportedProtocolVersion,
        protocols: &[&str],
        groups: &[&'static dyn SupportedKxGroup],
    ) -> Self {
        let mut provider = provider::default_provider();
        provider.kx_groups = groups.to_vec();
        provider.cipher_suites = vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustsAll))
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("derp.test").unwrap();
        Self { tls: ClientConnection::new(Arc::new(config), name).unwrap() }
    }

    /// Return the bytes that the client has to write.
    pub fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        out
    }

    /// Take bytes that the session wrote; return the plain bytes.
    pub fn input(&mut self, mut data: &[u8]) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        while !data.is_empty() {
            self.tls.read_tls(&mut data).unwrap();
            let state = self.tls.process_new_packets()?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut plain[start..]).unwrap();
        }
        Ok(plain)
    }

    pub fn seal(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in data.chunks(16 * 1024) {
            self.tls.writer().write_all(chunk).unwrap();
            out.extend(self.output());
        }
        out
    }

    /// Do the handshake with a session.
    pub fn shake(&mut self, session: &mut Session) {
        for _ in 0..4 {
            let data = self.output();
            assert!(feed(session, &data).is_empty());
            let answer = session.take_output();
            assert!(self.input(&answer).unwrap().is_empty());
        }
        assert_eq!(session.failure(), None);
        assert!(session.established() && !self.tls.is_handshaking());
    }

    /// Turn into a client that breaks the rules; TLS 1.3 only.
    pub fn into_odd(self) -> Odd {
        let secrets = self.tls.dangerous_extract_secrets().unwrap();
        let (sequence, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
            panic!("another cipher");
        };
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).unwrap());
        Odd { key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }
}

/// A client after the handshake that encrypts any records.
pub struct Odd {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Odd {
    /// Return an authentic record of TLS 1.3 with any contents.
    pub fn record(&mut self, kind: u8, contents: &[u8]) -> Vec<u8> {
        self.padded(kind, contents, 0)
    }

    pub fn padded(&mut self, kind: u8, contents: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = contents.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        let length = u16::try_from(inner.len() + AES_128_GCM.tag_len()).unwrap();
        let mut record = vec![APPLICATION, 3, 3];
        record.extend(length.to_be_bytes());
        let mut nonce = self.iv;
        for (byte, more) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= more;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(record.clone());
        self.key.seal_in_place_append_tag(nonce, aad, &mut inner).unwrap();
        record.extend(inner);
        record
    }
}

/// Return a session after the handshake, with a client that breaks the rules.
pub fn odd_pair() -> (Session, Odd) {
    let mut session = session();
    let mut client = Client::new(&rustls::version::TLS13);
    client.shake(&mut session);
    (session, client.into_odd())
}

/// Pseudo-random numbers that are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[derive(Debug)]
struct TrustsAll;

impl ServerCertVerifier for TrustsAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
