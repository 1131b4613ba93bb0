//! The module `pyderp_fast`.

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

/// Raised by one with a higher number once callers must change.
const API_VERSION: u32 = 1;

create_exception!(
    pyderp_fast,
    TlsError,
    PyException,
    "A certificate or key cannot be served; `reason` says why, in words that stay the same."
);

fn tls_error(py: Python<'_>, reason: String) -> PyErr {
    let text = PyString::new(py, &reason).unbind();
    let error = TlsError::new_err((text.clone_ref(py),));
    match error.value(py).setattr(intern!(py, "reason"), text) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// Walk over whole SendPackets and make RecvPackets of them, in place.
///
/// Args:
///     buffer: writable; what was received.
///     pos: where a frame starts.
///     end: where the bytes end that were received.
///     key: the 32 bytes of the source's key.
///
/// Returns:
///     (pos, runs, packets, size, disco): the first frame that was left as it was; for each run
///     of neighbouring frames to one destination its key, a copy of the frames, and their
///     number; how many packets; their bytes without headers and keys; how many of them are
///     messages of path discovery.
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
    // Tuples and the list come last: making them may start a collection, and so code that
    // writes to the buffer.
    let mut runs = Vec::new();
    let walked = frames::walk(data, key, |run, data| {
        runs.push((PyBytes::new(py, &run.key), PyBytes::new(py, data), run.count));
    });
    let runs = PyList::new(py, runs)?;
    Ok((pos + walked.pos, runs, walked.packets, walked.size, walked.disco))
}

/// The server's side of TLS with one certificate.
///
/// Args:
///     chain: what is presented, the leaf first: PEM with any text around, or a list of DER
///         certificates. All but the leaf are presented as they are.
///     key: the leaf's private key, PEM or DER, not encrypted.
///     alpn: the protocol that ALPN offers; empty: none.
///     keylog: a file that TLS secrets are appended to.
///
/// Raises:
///     TlsError: certificate or key cannot be served by this engine.
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

/// The TLS of one connection, without its socket: `pyderp.server.conn.records.RecordLayer`.
///
/// Args:
///     config: certificate and settings.
///     alpn: whether the ClientHello offers the protocol of `config`. Clients that offer only
///         others are served all the same, without one.
#[pyclass(module = "pyderp_fast")]
struct Tls {
    session: Session,
    news: bool,
    failure: Option<Py<PyString>>,
}

impl Tls {
    /// Keep what a call changed where Python reads it.
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

    /// After `feed`: the handshake is over, it failed, the client closed it, or there is output.
    #[getter]
    fn news(&self) -> bool {
        self.news
    }

    /// The client's close alert came.
    #[getter]
    fn is_closed(&self) -> bool {
        self.session.closed()
    }

    /// Why the connection must end; empty: it need not.
    #[getter]
    fn failure(&self, py: Python<'_>) -> Py<PyString> {
        match &self.failure {
            Some(reason) => reason.clone_ref(py),
            None => intern!(py, "").clone().unbind(),
        }
    }

    /// The version agreed on, such as `1.3`; empty before that.
    #[getter]
    fn version(&self) -> &'static str {
        self.session.version()
    }

    /// Take encrypted bytes and decrypt all whole records that are there.
    ///
    /// Args:
    ///     encrypted: is overwritten if it is writable.
    ///     room: gets the plain bytes; it must hold as many as `encrypted` and a record more.
    ///
    /// Returns:
    ///     how many plain bytes there are now.
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

    /// Encrypt bytes of the stream; returns what to write, in front of it what `output` has.
    #[pyo3(signature = (chunks, /))]
    fn seal<'py>(
        &mut self,
        py: Python<'py>,
        chunks: &Bound<'py, PyList>,
    ) -> PyResult<Bound<'py, PyBytes>> {
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

    /// What TLS itself has to write: handshake, alerts; mostly nothing.
    fn output<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.session.take_output())
    }

    /// Returns the close alert; empty if the handshake is not over.
    fn close<'py>(&mut self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let alert = self.session.close();
        self.note_failure(py);
        PyBytes::new(py, &alert)
    }

    /// Plain bytes that the client cannot decrypt if the end of a `seal` does not reach it.
    ///
    /// Args:
    ///     outer: encrypted bytes that are missing at its end; a record counts as a whole.
    ///     plain: bytes that were given to `seal`.
    ///     encrypted: bytes that it returned; not needed here.
    #[pyo3(signature = (outer, plain, encrypted, /))]
    fn unsent_size(&self, outer: isize, plain: usize, encrypted: usize) -> usize {
        let _ = encrypted;
        self.session.unsent_size(usize::try_from(outer).unwrap_or(0), plain)
    }

    /// Let the engine panic at the next call, to test that this session alone ends.
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

/// Panics that are told on standard error.
const MOST_TOLD: usize = 10;

/// Tell of a panic in a line. Rust would add a backtrace, and a client may have found a way to
/// make one happen again and again.
fn tell_panics_in_short() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|panic| {
        if TOLD.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
            let text = panic.to_string().replace('\n', " ");
            eprintln!("pyderp-fast: {text}; please report it");
        }
    }));
}

/// TLS records and the walk over frames, for pyderp.
#[pymodule(gil_used = true)]
fn pyderp_fast(module: &Bound<'_, PyModule>) -> PyResult<()> {
    tell_panics_in_short();
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
