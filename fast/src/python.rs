//! The Python module `pyderp_fast`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};
use rustls::pki_types::CertificateDer;
use rustls::KeyLog;

use crate::buffers::Lent;
use crate::config::{certificates, private_key, Config, KeyLogFile};
use crate::frames::{self, KEY_LEN};
use crate::session::Session;

/// The version of this interface; it grows when callers must change.
const API_VERSION: u32 = 1;

create_exception!(
    pyderp_fast,
    TlsError,
    PyException,
    "A certificate or key is refused; `reason` is a text that stays the same in later versions."
);

fn tls_error(py: Python<'_>, reason: String) -> PyErr {
    let text = PyString::new(py, &reason).unbind();
    let error = TlsError::new_err((text.clone_ref(py),));
    match error.value(py).setattr(intern!(py, "reason"), text) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// Turn complete SendPackets into RecvPackets, in place.
///
/// It stops at the first frame that is of another type, incomplete, or of a wrong length.
///
/// Args:
///     buffer: the received bytes; must be writable.
///     pos: the start of the first frame.
///     end: the end of the received bytes.
///     key: the 32 bytes of the sender's key.
///
/// Returns:
///     (pos, runs, packets, size, disco): the position where it stopped; for each run of
///     neighbouring frames to one destination its key, a copy of the frames, and their number;
///     the number of packets; their bytes without headers and keys; how many of them are disco
///     messages (path discovery).
#[pyfunction]
#[pyo3(signature = (buffer, pos, end, key, /))]
fn walk<'py>(
    py: Python<'py>,
    buffer: &Bound<'py, PyAny>,
    pos: usize,
    end: usize,
    key: &[u8],
) -> PyResult<(usize, Bound<'py, PyList>, usize, usize, usize)> {
    let key: &[u8; KEY_LEN] =
        key.try_into().map_err(|_| PyValueError::new_err("the key must have 32 bytes"))?;
    let mut buffer = Lent::writable(buffer)?;
    let data = buffer
        .as_mut_slice(None)?
        .get_mut(pos..end)
        .ok_or_else(|| PyValueError::new_err("pos and end must lie in the buffer"))?;
    // The tuples and the list are made after the walk. Making them may start the cyclic collector,
    // which may run code that changes the buffer; making `bytes` does not.
    let mut runs = Vec::new();
    let walked = frames::walk(data, key, |run, data| {
        runs.push((PyBytes::new(py, &run.key), PyBytes::new(py, data), run.count));
    });
    let runs = PyList::new(py, runs)?;
    Ok((pos + walked.pos, runs, walked.packets, walked.size, walked.disco))
}

/// The settings of the server's side of TLS with one certificate.
///
/// Args:
///     chain: the certificates to present, the leaf first: PEM with any text between them, or a
///         list of DER certificates. Certificates after the leaf are not checked.
///     key: the leaf's private key, PEM or DER, not encrypted.
///     alpn: the only protocol that ALPN selects; empty for none.
///     keylog: a file to which the TLS secrets of all connections are appended.
///
/// Raises:
///     TlsError: this engine refuses the certificate or the key.
///     OSError: the file cannot be opened.
#[pyclass(frozen, module = "pyderp_fast")]
struct TlsConfig {
    config: Config,
}

#[pymethods]
impl TlsConfig {
    #[new]
    #[pyo3(signature = (chain, key, *, alpn = "http/1.1", keylog = None))]
    fn new(
        py: Python<'_>,
        chain: &Bound<'_, PyAny>,
        key: &[u8],
        alpn: &str,
        keylog: Option<PathBuf>,
    ) -> PyResult<Self> {
        let chain = match chain.cast::<PyBytes>() {
            Ok(pem) => certificates(pem.as_bytes()),
            Err(_) => {
                Ok(chain.extract::<Vec<Vec<u8>>>()?.into_iter().map(CertificateDer::from).collect())
            }
        };
        let chain = chain.map_err(|reason| tls_error(py, reason))?;
        let key = private_key(key).map_err(|reason| tls_error(py, reason))?;
        let keylog = match keylog {
            Some(path) => Some(Arc::new(KeyLogFile::open(&path)?) as Arc<dyn KeyLog>),
            None => None,
        };
        let config =
            Config::new(chain, key, alpn, keylog).map_err(|reason| tls_error(py, reason))?;
        Ok(Self { config })
    }
}

/// The TLS of one connection without its socket, a `pyderp.server.conn.records.RecordLayer`.
///
/// Args:
///     config: certificate and settings.
///     alpn: whether the ClientHello offers the protocol of `config`. A client that does not is
///         served too, without a selected protocol.
#[pyclass(module = "pyderp_fast")]
struct Tls {
    session: Session,
    news: bool,
    failure: Option<Py<PyString>>,
}

impl Tls {
    /// Copy the session's failure to where Python reads it, once.
    fn note_failure(&mut self, py: Python<'_>) {
        if self.failure.is_none() {
            if let Some(reason) = self.session.failure() {
                self.failure = Some(PyString::new(py, reason).unbind());
            }
        }
    }
}

#[pymethods]
impl Tls {
    #[new]
    #[pyo3(signature = (config, *, alpn = true))]
    fn new(py: Python<'_>, config: &Bound<'_, TlsConfig>, alpn: bool) -> PyResult<Self> {
        let session = Session::new(&config.get().config, alpn);
        Ok(Self {
            session: session.map_err(|reason| tls_error(py, reason))?,
            news: false,
            failure: None,
        })
    }

    /// Whether the last `feed` ended the handshake, failed, read a close alert, or made output.
    #[getter]
    fn news(&self) -> bool {
        self.news
    }

    /// Whether the client's close alert has been received.
    #[getter]
    fn is_closed(&self) -> bool {
        self.session.closed()
    }

    /// Why the connection must end; empty if it need not.
    #[getter]
    fn failure(&self, py: Python<'_>) -> Py<PyString> {
        match &self.failure {
            Some(reason) => reason.clone_ref(py),
            None => intern!(py, "").clone().unbind(),
        }
    }

    /// The negotiated TLS version, such as `1.3`; empty before it is known.
    #[getter]
    fn version(&self) -> &'static str {
        self.session.version()
    }

    /// Take encrypted bytes, and decrypt all complete records.
    ///
    /// Args:
    ///     encrypted: the received bytes; they are overwritten if the buffer is writable.
    ///     room: gets the plain bytes; it must have room for the bytes of `encrypted` and one
    ///         record more.
    ///
    /// Returns:
    ///     the number of plain bytes in `room`.
    ///
    /// Raises:
    ///     ValueError: `room` is too small, read-only, or overlaps `encrypted`.
    #[pyo3(signature = (encrypted, room, /))]
    fn feed(
        &mut self,
        py: Python<'_>,
        encrypted: &Bound<'_, PyAny>,
        room: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        let mut encrypted = Lent::readable(encrypted)?;
        let mut room = Lent::writable(room)?;
        if self.session.room_for(encrypted.len()) > room.len() {
            return Err(PyValueError::new_err("the room is too small"));
        }
        let was_established = self.session.established();
        let room = room.as_mut_slice(Some(&encrypted))?;
        // rustls decrypts in place, so bytes that must not be changed are copied first.
        let filled = if encrypted.is_writable() {
            self.session.feed(encrypted.as_mut_slice(None)?, room)
        } else {
            self.session.feed(&mut encrypted.as_slice().to_vec(), room)
        };
        self.note_failure(py);
        self.news = self.session.has_output()
            || self.failure.is_some()
            || self.session.closed()
            || self.session.established() != was_established;
        Ok(filled)
    }

    /// Encrypt bytes of the stream. Returns the bytes to write, which begin with the output of TLS.
    #[pyo3(signature = (chunks, /))]
    fn seal<'py>(
        &mut self,
        py: Python<'py>,
        chunks: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        // A single chunk needs no vectors; it is the most frequent case.
        let sealed = if chunks.len() == 1 {
            let chunk = chunks.get_item(0)?.cast_into::<PyBytes>()?;
            seal(py, &mut self.session, &[chunk.as_bytes()])
        } else {
            let chunks: Vec<Bound<'py, PyBytes>> = chunks
                .iter()
                .map(|chunk| chunk.cast_into::<PyBytes>())
                .collect::<Result<_, _>>()?;
            let slices: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
            seal(py, &mut self.session, &slices)
        };
        self.note_failure(py);
        sealed
    }

    /// Return the bytes that TLS itself has to write (handshake, alerts), and forget them.
    fn output<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.session.take_output())
    }

    /// Return the bytes to write before the end, with the close alert if the handshake is over.
    fn close<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let alert = self.session.close();
        self.note_failure(py);
        PyBytes::new(py, &alert)
    }

    /// Return how many plain bytes the client cannot decrypt, if the end of a `seal` is lost.
    ///
    /// Args:
    ///     outer: encrypted bytes lost at the end. A record of which a part is lost is lost as a
    ///         whole.
    ///     plain: bytes that were passed to `seal`.
    ///     encrypted: bytes that `seal` returned; not needed here.
    #[pyo3(signature = (outer, plain, encrypted, /))]
    fn unsent_size(&self, outer: isize, plain: usize, encrypted: usize) -> usize {
        let _ = encrypted;
        self.session.unsent_size(usize::try_from(outer).unwrap_or(0), plain)
    }

    /// Make the engine panic at the next call, to test that only this session ends.
    fn _inject_panic(&mut self) {
        self.session.panic_next();
    }
}

fn seal<'py>(
    py: Python<'py>,
    session: &mut Session,
    chunks: &[&[u8]],
) -> PyResult<Bound<'py, PyBytes>> {
    let plain = chunks.iter().map(|chunk| chunk.len()).sum();
    if plain == 0 {
        return Ok(PyBytes::new(py, &session.take_output()));
    }
    // The records are written right into the `bytes` that is returned. They are copied only if the
    // size differs, as it does when rustls adds a key update.
    let size = session.sealed_size(plain);
    let mut written = 0;
    let mut rest = Vec::new();
    let sealed = PyBytes::new_with(py, size, |room| {
        let sealed = session.seal(chunks, room);
        written = sealed.written;
        rest = sealed.rest;
        Ok(())
    })?;
    if written == size && rest.is_empty() {
        return Ok(sealed);
    }
    rest.splice(0..0, sealed.as_bytes()[..written].iter().copied());
    Ok(PyBytes::new(py, &rest))
}

/// Panics that are printed to standard error.
const MOST_PRINTED: usize = 10;

/// Print one line for each of the first panics. Rust's own hook may print a backtrace for every
/// panic, and a client may know a way to cause panics again and again.
fn print_few_panics() {
    static PRINTED: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|panic| {
        if PRINTED.fetch_add(1, Ordering::Relaxed) < MOST_PRINTED {
            let text = panic.to_string().replace('\n', " ");
            eprintln!("pyderp-fast: {text}; please report it");
        }
    }));
}

/// TLS records and the walk over frames, for pyderp.
#[pymodule(gil_used = true)]
fn pyderp_fast(module: &Bound<'_, PyModule>) -> PyResult<()> {
    print_few_panics();
    let py = module.py();
    module.add("API_VERSION", API_VERSION)?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add("TlsError", py.get_type::<TlsError>())?;
    module.add_class::<TlsConfig>()?;
    module.add_class::<Tls>()?;
    module.add_function(wrap_pyfunction!(walk, module)?)?;
    let names = ["API_VERSION", "VERSION", "Tls", "TlsConfig", "TlsError", "walk"];
    module.add("__all__", PyTuple::new(py, names)?)
}
