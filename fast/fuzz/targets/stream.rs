//! Feeds a session with any bytes, in reads of any size, as from a client without keys.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;
use pyderp_fast::errors::INTERNAL;

fuzz_target!(|data: &[u8]| {
    // The first byte sets the size of the reads.
    let Some((size, stream)) = data.split_first() else { return };
    let mut session = common::session();
    for read in stream.chunks(usize::from(*size) * 16 + 1) {
        let plain = common::feed(&mut session, read);
        assert!(plain.is_empty());
        session.take_output();
    }
    assert!(!session.established());
    assert!(session.close().is_empty());
    assert_ne!(session.failure(), Some(INTERNAL));
});
