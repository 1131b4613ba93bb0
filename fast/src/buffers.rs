//! Python's buffers as slices: the only place with `unsafe`.

use std::mem::MaybeUninit;
use std::os::raw::c_int;
use std::slice;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::{ffi, PyErr};

/// A buffer borrowed from Python, released when this value is dropped.
pub struct Lent<'py> {
    view: ffi::Py_buffer,
    python: Python<'py>,
}

impl<'py> Lent<'py> {
    /// Borrow a writable buffer of contiguous bytes.
    pub fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::get(object, ffi::PyBUF_WRITABLE)
    }

    /// Borrow a buffer of contiguous bytes, which may be read-only.
    pub fn readable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        Self::get(object, ffi::PyBUF_SIMPLE)
    }

    fn get(object: &Bound<'py, PyAny>, flags: c_int) -> PyResult<Self> {
        let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
        // SAFETY: the object is alive, the GIL is held, and Python fills `view` or returns -1.
        let result = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) };
        if result != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: Python has filled it, because the result is 0.
        Ok(Self { view: unsafe { view.assume_init() }, python: object.py() })
    }

    pub fn is_writable(&self) -> bool {
        self.view.readonly == 0
    }

    pub fn len(&self) -> usize {
        self.view.len.unsigned_abs()
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: without PyBUF_ND the buffer is `len` contiguous bytes, which Python does not move
        // or free before the release. No other code changes them: the GIL is held, and while a
        // slice is in use, this crate calls Python only to make `bytes`, which runs no other code.
        unsafe { slice::from_raw_parts(self.view.buf.cast(), self.len()) }
    }

    /// The bytes, to be changed. Fails if the buffer is read-only, or overlaps `others`.
    pub fn as_mut_slice(&mut self, others: Option<&Self>) -> PyResult<&mut [u8]> {
        if !self.is_writable() {
            return Err(PyValueError::new_err("the buffer is read-only"));
        }
        if others.is_some_and(|other| self.overlaps(other)) {
            return Err(PyValueError::new_err("the buffers overlap"));
        }
        if self.len() == 0 {
            return Ok(&mut []);
        }
        // SAFETY: as in `as_slice`. The buffer is writable, `self` is borrowed mutably, and the
        // other buffer in use does not overlap it.
        Ok(unsafe { slice::from_raw_parts_mut(self.view.buf.cast(), self.len()) })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.view.buf as usize, other.view.buf as usize);
        a < b + other.len() && b < a + self.len()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let _ = self.python;
        // SAFETY: the GIL is held, and the view was filled by PyObject_GetBuffer and is released
        // once.
        unsafe { ffi::PyBuffer_Release(&mut self.view) };
    }
}
