//! The TLS of one connection, without its socket: bytes in, bytes out.
//!
//! rustls' unbuffered connection decrypts records where they stand and keeps nothing, so an idle
//! session is small. It must never be called again after an error, nor without the bytes that it
//! has not discarded: all that is seen to here.

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
/// The most bytes of a record that is not whole yet.
pub const MAX_TAIL: usize = RECORD_HEADER + RECORD + 2048;
/// Bytes of records that bring nothing, one after the other.
const MOST_WITHOUT_DATA: usize = 40 * 1024;
/// Bytes of a handshake that still waits for its end.
const MOST_HANDSHAKE: usize = 64 * 1024;
/// Plain HTTP is known by its first word, a method. This many bytes tell.
const ENOUGH_FOR_HTTP: usize = 5;
const HTTP_METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIO", b"DELET", b"PATCH", b"CONNE", b"TRACE"];
/// The first byte of a record that may come first: alert, handshake.
const FIRST_RECORDS: [u8; 2] = [21, 22];

/// Alerts as they are before anything is encrypted (RFC 8446 §6).
const HANDSHAKE_FAILURE: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

/// A session that failed, or met a bug, has no connection any more.
type Connection = UnbufferedServerConnection;

/// What `Session::seal` made.
pub struct Sealed {
    /// Bytes in the room that it was given.
    pub written: usize,
    /// What did not fit behind them: only a key update makes that happen.
    pub rest: Vec<u8>,
}

/// The TLS of one connection.
pub struct Session {
    connection: Option<Connection>,
    /// What rustls has not discarded: an incomplete record, or parts of a handshake message.
    pending: Vec<u8>,
    /// What TLS itself has to write.
    out: Vec<u8>,
    established: bool,
    began: bool,
    /// It wrote something.
    answered: bool,
    closed: bool,
    failure: Option<String>,
    without_data: usize,
    version: Option<ProtocolVersion>,
    overhead: usize,
    panic_next: bool,
}

impl Session {
    /// The server's side of a new connection.
    ///
    /// * `alpn`: the client offers the protocol of the settings.
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

    /// The handshake is over.
    pub fn established(&self) -> bool {
        self.established
    }

    /// The client's close alert came.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Why the connection must end.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The version agreed on, such as `1.3`; empty before that.
    pub fn version(&self) -> &'static str {
        match self.version {
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            _ => "",
        }
    }

    /// Whether `take_output` has something.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// What TLS itself has to write.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// How much room `feed` needs for the plain bytes of this many.
    pub fn room_for(&self, encrypted: usize) -> usize {
        encrypted + self.pending.len().min(MAX_TAIL)
    }

    /// The next call into the engine panics; for tests.
    pub fn panic_next(&mut self) {
        self.panic_next = true;
    }

    /// Take encrypted bytes, and decrypt all whole records that are there.
    ///
    /// * `encrypted`: is overwritten.
    /// * `room`: gets the plain bytes; it must hold `room_for` them.
    ///
    /// Returns how many plain bytes there are now.
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
            // Until it is known what this is.
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
        while !self.pending.is_empty() && !rest.is_empty() && !self.closed {
            let take = missing(&self.pending).min(rest.len());
            // Nothing is missing: parts of a handshake message that go on in other records.
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
            self.pending = Vec::new(); // what stands behind a close alert is for no one
        }
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

    /// Let rustls work on bytes as long as they bring it further; returns how many are done with.
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
        loop {
            let mut brought = false;
            let mut waits = false;
            let status = connection.process_tls_records(&mut data[used..]);
            let mut discard = status.discard;
            match status.state.map_err(|e| reason(&e))? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|e| reason(&e))?;
                        let stop = *filled + record.payload.len();
                        room[*filled..stop].copy_from_slice(record.payload);
                        brought |= stop > *filled;
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
                self.established = true;
                self.version = connection.protocol_version();
                self.overhead = overhead(connection);
            } else if brought {
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

    /// How large `seal` makes bytes, with what is to be written in front of them.
    pub fn sealed_size(&self, plain: usize) -> usize {
        self.out.len() + plain + plain.div_ceil(RECORD) * self.overhead
    }

    /// Encrypt bytes of the stream into records, in front of them what `take_output` has.
    ///
    /// * `room`: gets them; it should have `sealed_size`.
    pub fn seal(&mut self, chunks: &[&[u8]], room: &mut [u8]) -> Sealed {
        let mut sealed = Sealed { written: 0, rest: Vec::new() };
        self.guarded(|session| session.seal_all(chunks, room, &mut sealed));
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
        // It may have part of a handshake message in mind, and then looks for it.
        let status = connection.process_tls_records(&mut self.pending);
        let mut traffic = match status.state.map_err(|e| reason(&e))? {
            ConnectionState::WriteTraffic(traffic) if status.discard == 0 => traffic,
            _ => return Err(INTERNAL.into()),
        };
        if let [chunk] = chunks {
            return encrypt(&mut traffic, chunk, room, sealed);
        }
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

    /// Make the close alert, if the handshake is over; returns what is to be written.
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

    /// Plain bytes that the client cannot decrypt if the end of a `seal` does not reach it.
    ///
    /// * `outer`: encrypted bytes that are missing at its end; a record counts as a whole.
    /// * `plain`: bytes that were given to `seal`.
    pub fn unsent_size(&self, outer: usize, plain: usize) -> usize {
        if outer == 0 || plain == 0 {
            return 0;
        }
        let last = (plain - 1) % RECORD + 1;
        if outer <= last + self.overhead {
            return last;
        }
        let more = (outer - last - self.overhead).div_ceil(RECORD + self.overhead);
        (last + more * RECORD).min(plain)
    }

    /// Run a step in which rustls is called. What fails or panics ends this session alone.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), String>) {
        if self.failure.is_some() {
            return;
        }
        let panics = std::mem::take(&mut self.panic_next);
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

    /// Give the connection up; its alert, if it made one, is in the output.
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

    /// rustls has no alert for some errors in a ClientHello, and calls old versions a failure of
    /// the handshake. Nothing is encrypted as long as nothing was answered.
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

    /// As long as there is something to write rustls touches nothing else, so that this one call
    /// after an error is allowed.
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

/// How many bytes are missing of the header, or of the record, that stands first.
fn missing(data: &[u8]) -> usize {
    match data {
        [_, _, _, high, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            (RECORD_HEADER + length).saturating_sub(data.len())
        }
        _ => RECORD_HEADER - data.len(),
    }
}

/// What a record costs beside its plain bytes.
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

/// Let something write behind what is there; it says how much room it needs.
fn append(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), String> {
    let start = out.len();
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
