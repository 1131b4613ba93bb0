//! Feeds a session with authentic records of a client that breaks the rules of TLS.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use libfuzzer_sys::fuzz_target;
use pyderp_fast::errors::INTERNAL;

fuzz_target!(|data: &[u8]| {
    let (mut session, mut odd) = common::odd_pair();
    let mut data = data;
    let mut waiting = Vec::new();
    // The input of each record: its type, how it is fed, its length, its contents.
    while let [kind, how, length, rest @ ..] = data {
        let (contents, behind) = rest.split_at(usize::from(*length).min(rest.len()));
        data = behind;
        let mut record = odd.padded(*kind, contents, usize::from(how >> 4) * 1000);
        if how & 1 != 0 {
            let at = contents.len() % record.len();
            record[at] ^= 1;
        }
        waiting.extend(record);
        if how & 2 == 0 {
            let cut =
                if how & 4 == 0 { waiting.len() } else { usize::from(*length) % waiting.len() };
            common::feed(&mut session, &waiting[..cut]);
            waiting.drain(..cut);
        }
        if how & 8 != 0 {
            common::seal(&mut session, &[b"some", contents]);
        }
    }
    common::feed(&mut session, &waiting);
    session.close();
    assert_ne!(session.failure(), Some(INTERNAL));
});
