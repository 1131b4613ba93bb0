//! The TLS of one connection without its socket: bytes in, bytes out.
//!
//! rustls' unbuffered connection decrypts records in place and keeps no bytes, so an idle session
//! needs little memory. In return its caller has two duties, which this module fulfils: it must
//! pass bytes again that rustls did not discard, and must not call it again after an error.

use std::panic::{catch_unwind, AssertUnwindSafe};

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, WriteTraffic};
use rustls::{CipherSuite, ProtocolVersion};

use crate::config::Config;
use crate::errors::{
    reason, BRINGS_NOTHING, INTERNAL, NOT_ESTABLISHED, NOT_TLS, OLD_VERSION, PLAIN_HTTP, TOO_LARGE,
};

/// The most plain bytes of one record (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
const RECORD_HEADER: usize = 5;
/// The most bytes of an incomplete record.
pub const MAX_TAIL: usize = RECORD_HEADER + RECORD + 2048;
/// The most bytes of records without data in a row. A client could use the relay's CPU with them.
const MOST_WITHOUT_DATA: usize = 40 * 1024;
/// The most bytes of an incomplete handshake message.
const MOST_HANDSHAKE: usize = 64 * 1024;
/// The bytes that are needed to recognize the method of a plain HTTP request.
const ENOUGH_FOR_HTTP: usize = 5;
const HTTP_METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIO", b"DELET", b"PATCH", b"CONNE", b"TRACE"];
/// The types that a first record may have: alert, handshake.
const FIRST_RECORDS: [u8; 2] = [21, 22];

/// Alerts as unencrypted records (RFC 8446 §6).
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

type Connection = UnbufferedServerConnection;

/// The result of `Session::seal`.
pub struct Sealed {
    /// Bytes written to the given room.
    pub written: usize,
    /// Bytes that did not fit after them. That happens only if rustls adds a key update.
    pub rest: Vec<u8>,
}

/// The TLS of one connection.
pub struct Session {
    /// `None` after a failure: rustls must not be called again.
    connection: Option<Connection>,
    /// Bytes that rustls did not discard: an incomplete record, or parts of a handshake message.
    pending: Vec<u8>,
    /// Bytes that TLS itself has to write.
    out: Vec<u8>,
    established: bool,
    /// Whether the first bytes were recognized as TLS.
    began: bool,
    /// Whether rustls has made a handshake message.
    answered: bool,
    closed: bool,
    failure: Option<String>,
    /// Bytes of records since the last one with data.
    without_data: usize,
    version: Option<ProtocolVersion>,
    /// Bytes of a record beside its plain bytes.
    overhead: usize,
    panic_next: bool,
}

impl Session {
    /// Begin the server's side of a connection.
    ///
    /// * `alpn`: whether the client offers the protocol of the settings.
    pub fn new(config: &Config, alpn: bool) -> Result<Self, String> {
        let connection = UnbufferedServerConnection::new(config.choose(alpn));
        Ok(Self {
            connection: Some(connection.map_err(|e| reason(&e))?),
            pending: Vec::new(),
            out: Vec::new(),
            established: false,
            began: false,
            answered: false,
            closed: false,
            failure: None,
            without_data: 0,
            version: None,
            overhead: 0,
            panic_next: false,
        })
    }

    /// Whether the handshake is over.
    pub fn established(&self) -> bool {
        self.established
    }

    /// Whether the client's close alert has been received.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Why the connection must end.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The negotiated TLS version, such as `1.3`; empty before it is known.
    pub fn version(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "",
        }
    }

    /// Whether TLS itself has bytes to write.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Return the bytes that TLS itself has to write, and forget them.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The room that `feed` needs for the plain bytes of so many encrypted ones.
    pub fn room_for(&self, encrypted: usize) -> usize {
        // Plain bytes are fewer than encrypted ones; `pending` may complete a record.
        encrypted + self.pending.len().min(MAX_TAIL)
    }

    /// Make the next call into the engine panic, for tests.
    pub fn panic_next(&mut self) {
        self.panic_next = true;
    }

    /// Take encrypted bytes, and decrypt all complete records.
    ///
    /// * `encrypted`: the received bytes, which are overwritten.
    /// * `room`: gets the plain bytes; it must have `room_for` them.
    ///
    /// Returns the number of plain bytes in `room`.
    pub fn feed(&mut self, encrypted: &mut [u8], room: &mut [u8]) -> usize {
        let mut filled = 0;
        self.guarded(|session| session.feed_all(encrypted, room, &mut filled));
        filled
    }

    fn feed_all(
        &mut self,
        encrypted: &mut [u8],
        room: &mut [u8],
        filled: &mut usize,
    ) -> Result<(), String> {
        let mut rest = encrypted;
        if !self.began {
            // A few bytes may be too short to recognize the protocol, so they are collected first.
            self.pending.extend_from_slice(rest);
            rest = &mut [];
            match what_begins(&self.pending) {
                Beginning::Unknown => return Ok(()),
                Beginning::Http => return Err(PLAIN_HTTP.into()),
                Beginning::Other => return Err(NOT_TLS.into()),
                Beginning::Tls => self.began = true,
            }
            self.feed_pending(room, filled)?;
        }
        // Complete the pending record first, with as few copied bytes as possible: all other
        // records are decrypted where they are in `encrypted`.
        while !self.pending.is_empty() && !rest.is_empty() && !self.closed {
            let take = missing(&self.pending).min(rest.len());
            // If the pending record is complete, it is a part of a handshake message that goes on
            // in the next records. rustls wants all of them together.
            let take = if take == 0 { rest.len() } else { take };
            let (some, others) = rest.split_at_mut(take);
            rest = others;
            self.pending.reserve_exact(some.len());
            self.pending.extend_from_slice(some);
            self.feed_pending(room, filled)?;
        }
        if !rest.is_empty() && !self.closed {
            let used = self.process(rest, room, filled)?;
            self.pending = rest[used..].to_vec();
        }
        if self.closed {
            self.pending = Vec::new(); // bytes after a close alert are ignored (RFC 8446 §6.1)
        }
        // A client must not make the relay keep or process bytes without end.
        let (waiting, most, what) = if self.established {
            (self.without_data + self.pending.len(), MOST_WITHOUT_DATA, BRINGS_NOTHING)
        } else {
            (self.pending.len(), MOST_HANDSHAKE, TOO_LARGE)
        };
        if waiting > most {
            return Err(what.into());
        }
        Ok(())
    }

    fn feed_pending(&mut self, room: &mut [u8], filled: &mut usize) -> Result<(), String> {
        let mut pending = std::mem::take(&mut self.pending);
        let used = self.process(&mut pending, room, filled)?;
        if used < pending.len() {
            pending.drain(..used);
            self.pending = pending;
        }
        Ok(())
    }

    /// Let rustls process bytes until it needs more. Returns how many it discarded.
    ///
    /// * `data`: the bytes, from the start of a record on.
    /// * `room`, `filled`: get the plain bytes, and their number.
    fn process(
        &mut self,
        data: &mut [u8],
        room: &mut [u8],
        filled: &mut usize,
    ) -> Result<usize, String> {
        let Some(connection) = &mut self.connection else {
            return Ok(data.len());
        };
        let mut used = 0;
        // Each call returns one state; the loop ends with a state that waits for more bytes.
        loop {
            let mut has_data = false;
            let mut waits = false;
            let status = connection.process_tls_records(&mut data[used..]);
            let mut discard = status.discard;
            match status.state.map_err(|e| reason(&e))? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|e| reason(&e))?;
                        let stop = *filled + record.payload.len();
                        room[*filled..stop].copy_from_slice(record.payload);
                        has_data |= stop > *filled;
                        *filled = stop;
                        discard += record.discard;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.out, |room| match data.encode(room) {
                        Ok(written) => Ok(written),
                        Err(EncodeError::InsufficientSize(e)) => Err(Some(e.required_size)),
                        Err(EncodeError::AlreadyEncoded) => Err(None),
                    })?;
                    self.answered = true;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => {
                    self.closed = true;
                    waits = true;
                }
                ConnectionState::WriteTraffic(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed => waits = true,
                _ => return Err(INTERNAL.into()),
            }
            used += discard;
            if !self.established && !connection.is_handshaking() {
                // From now on version and cipher are fixed, and so is the overhead of a record.
                self.established = true;
                self.version = connection.protocol_version();
                self.overhead = overhead(connection);
            } else if has_data {
                self.without_data = 0;
            } else if self.established {
                self.without_data += discard;
            }
            if self.without_data > MOST_WITHOUT_DATA {
                return Err(BRINGS_NOTHING.into());
            }
            if waits {
                break;
            }
        }
        Ok(used)
    }

    /// The number of bytes that `seal` writes for so many plain bytes, with the output before them.
    pub fn sealed_size(&self, plain: usize) -> usize {
        self.out.len() + plain + plain.div_ceil(RECORD) * self.overhead
    }

    /// Encrypt bytes of the stream into records, and write them after the output of TLS.
    ///
    /// * `chunks`: the plain bytes, in pieces of any size.
    /// * `room`: gets the records; it should have `sealed_size` bytes.
    pub fn seal(&mut self, chunks: &[&[u8]], room: &mut [u8]) -> Sealed {
        let mut sealed = Sealed { written: 0, rest: Vec::new() };
        self.guarded(|session| session.seal_all(chunks, room, &mut sealed));
        // After a failure, nothing but the alert in the output must be written.
        if self.failure.is_some() {
            sealed = Sealed { written: 0, rest: Vec::new() };
        }
        sealed
    }

    fn seal_all(
        &mut self,
        chunks: &[&[u8]],
        room: &mut [u8],
        sealed: &mut Sealed,
    ) -> Result<(), String> {
        let connection = match &mut self.connection {
            Some(connection) if self.established => connection,
            _ => return Err(NOT_ESTABLISHED.into()),
        };
        if !self.out.is_empty() {
            if self.out.len() > room.len() {
                return Err(INTERNAL.into());
            }
            room[..self.out.len()].copy_from_slice(&self.out);
            sealed.written = self.out.len();
            self.out = Vec::new();
        }
        // With `pending`, because rustls may have seen part of a handshake message, and then
        // expects its bytes in each call.
        let status = connection.process_tls_records(&mut self.pending);
        let mut traffic = match status.state.map_err(|e| reason(&e))? {
            ConnectionState::WriteTraffic(traffic) if status.discard == 0 => traffic,
            _ => return Err(INTERNAL.into()),
        };
        if let [chunk] = chunks {
            return encrypt(&mut traffic, chunk, room, sealed);
        }
        // Small chunks are gathered, so that all records but the last are full: each record costs a
        // header and a tag. A large chunk at the start of a record is not copied.
        let mut gathered = Vec::new();
        for chunk in chunks {
            let mut chunk = *chunk;
            while !chunk.is_empty() {
                if gathered.is_empty() && chunk.len() >= RECORD {
                    let (record, others) = chunk.split_at(RECORD);
                    encrypt(&mut traffic, record, room, sealed)?;
                    chunk = others;
                    continue;
                }
                if gathered.capacity() == 0 {
                    gathered.reserve_exact(RECORD);
                }
                let (some, others) = chunk.split_at(chunk.len().min(RECORD - gathered.len()));
                gathered.extend_from_slice(some);
                chunk = others;
                if gathered.len() == RECORD {
                    encrypt(&mut traffic, &gathered, room, sealed)?;
                    gathered.clear();
                }
            }
        }
        encrypt(&mut traffic, &gathered, room, sealed)
    }

    /// Make the close alert, if the handshake is over. Returns the bytes to write.
    pub fn close(&mut self) -> Vec<u8> {
        if self.established {
            self.guarded(Self::close_traffic);
        }
        self.take_output()
    }

    fn close_traffic(&mut self) -> Result<(), String> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let status = connection.process_tls_records(&mut self.pending);
        match status.state.map_err(|e| reason(&e))? {
            ConnectionState::WriteTraffic(mut traffic) => append(&mut self.out, |room| {
                traffic.queue_close_notify(room).map_err(|e| match e {
                    EncryptError::InsufficientSize(e) => Some(e.required_size),
                    EncryptError::EncryptExhausted => None,
                })
            }),
            _ => Ok(()),
        }
    }

    /// Return how many plain bytes the client cannot decrypt, if the end of a `seal` is lost.
    ///
    /// * `outer`: encrypted bytes lost at the end. A record of which a part is lost is lost as a
    ///   whole.
    /// * `plain`: bytes that were passed to `seal`.
    pub fn unsent_size(&self, outer: usize, plain: usize) -> usize {
        if outer == 0 || plain == 0 {
            return 0;
        }
        // All records but the last are full.
        let last = (plain - 1) % RECORD + 1;
        if outer <= last + self.overhead {
            return last;
        }
        let more = (outer - last - self.overhead).div_ceil(RECORD + self.overhead);
        (last + more * RECORD).min(plain)
    }

    /// Run a step that calls rustls. An error or a panic in it ends this session only.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), String>) {
        if self.failure.is_some() {
            return;
        }
        let panics = std::mem::take(&mut self.panic_next);
        // Unwind safe: after a panic, nothing but `failure` is used of this session.
        let result = catch_unwind(AssertUnwindSafe(|| {
            assert!(!panics, "injected");
            step(self)
        }));
        match result {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => {
                self.fail(reason);
                self.mend_alert();
            }
            Err(_) => {
                self.out = Vec::new();
                self.drop_connection();
                self.fail(INTERNAL.into());
            }
        }
    }

    /// Drop rustls' connection. If it has made an alert, the alert is in the output.
    fn fail(&mut self, reason: String) {
        self.failure = Some(reason);
        self.pending = Vec::new();
        let result = catch_unwind(AssertUnwindSafe(|| self.take_alert()));
        if result.is_err() {
            self.out = Vec::new();
        }
        self.drop_connection();
        self.established = false; // no close alert after this
    }

    /// Add or replace the alert for an error in the ClientHello.
    ///
    /// rustls makes no alert for some of these errors, and `handshake_failure` for old versions,
    /// where OpenSSL and Go send `protocol_version`. An alert here is not encrypted, so this is
    /// done only before rustls has answered.
    fn mend_alert(&mut self) {
        if !self.began || self.answered {
            return;
        }
        if self.failure.as_deref() == Some(OLD_VERSION) {
            self.out = PROTOCOL_VERSION.to_vec();
        } else if self.out.is_empty() {
            self.out = HANDSHAKE_FAILURE.to_vec();
        }
    }

    /// Take the alert that rustls made for an error.
    ///
    /// This calls rustls after an error, which is safe here: while it has bytes to write, it
    /// returns these and does nothing else.
    fn take_alert(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        while connection.wants_write() {
            match connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let written = append(&mut self.out, |room| match data.encode(room) {
                        Ok(written) => Ok(written),
                        Err(EncodeError::InsufficientSize(e)) => Err(Some(e.required_size)),
                        Err(EncodeError::AlreadyEncoded) => Err(None),
                    });
                    if written.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    fn drop_connection(&mut self) {
        // After a panic the connection may be broken, so that dropping it panics again.
        let connection = self.connection.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(connection)));
    }
}

enum Beginning {
    Unknown,
    Tls,
    Http,
    Other,
}

fn what_begins(data: &[u8]) -> Beginning {
    match data.first() {
        Some(first) if FIRST_RECORDS.contains(first) => Beginning::Tls,
        Some(_) if data.len() >= ENOUGH_FOR_HTTP => {
            if HTTP_METHODS.iter().any(|method| data.starts_with(method)) {
                Beginning::Http
            } else {
                Beginning::Other
            }
        }
        _ => Beginning::Unknown,
    }
}

/// The number of bytes that the first record lacks, or its header if that is incomplete.
fn missing(data: &[u8]) -> usize {
    match data {
        [_, _, _, high, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            (RECORD_HEADER + length).saturating_sub(data.len())
        }
        _ => RECORD_HEADER - data.len(),
    }
}

/// The bytes of a record beside its plain bytes.
fn overhead(connection: &Connection) -> usize {
    const TAG: usize = 16;
    const INNER_TYPE: usize = 1;
    const EXPLICIT_NONCE: usize = 8;
    if connection.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
        return RECORD_HEADER + INNER_TYPE + TAG;
    }
    match connection.negotiated_cipher_suite().map(|suite| suite.suite()) {
        Some(
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ) => RECORD_HEADER + TAG,
        _ => RECORD_HEADER + EXPLICIT_NONCE + TAG,
    }
}

/// Append to `out` what `write` writes. With too little room, `write` returns how much it needs.
fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), String> {
    let start = out.len();
    // rustls tells the size only by refusing a buffer that is too small.
    let needed = match write(&mut []) {
        Ok(_) => return Ok(()),
        Err(Some(needed)) => needed,
        Err(None) => return Err(INTERNAL.into()),
    };
    out.reserve_exact(needed);
    out.resize(start + needed, 0);
    let written = write(&mut out[start..]).map_err(|_| INTERNAL)?;
    out.truncate(start + written);
    Ok(())
}

fn encrypt<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    plain: &[u8],
    room: &mut [u8],
    sealed: &mut Sealed,
) -> Result<(), String> {
    let exhausted = "the keys of this connection are used up";
    if plain.is_empty() {
        return Ok(());
    }
    // Once one record did not fit, all others follow it in `rest`, in order.
    if sealed.rest.is_empty() {
        match traffic.encrypt(plain, &mut room[sealed.written..]) {
            Ok(written) => {
                sealed.written += written;
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(_)) => {}
            Err(EncryptError::EncryptExhausted) => return Err(exhausted.into()),
        }
    }
    append(&mut sealed.rest, |room| {
        traffic.encrypt(plain, room).map_err(|e| match e {
            EncryptError::InsufficientSize(e) => Some(e.required_size),
            EncryptError::EncryptExhausted => None,
        })
    })
    .map_err(|_| exhausted.into())
}
