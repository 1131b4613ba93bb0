//! Walks over any bytes, and compares the result with that of a slow and simple walk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyderp_fast::frames::walk;

fuzz_target!(|data: &[u8]| {
    let source = [7; 32];
    let mut walked = data.to_vec();
    let mut runs = Vec::new();
    let result =
        walk(&mut walked, &source, |run, data| runs.push((run.key, data.to_vec(), run.count)));

    let mut pos = 0;
    let mut expected: Vec<([u8; 32], Vec<u8>, usize)> = Vec::new();
    while let Some(header) = data.get(pos..pos + 37) {
        let length = u32::from_be_bytes(header[1..5].try_into().unwrap()) as usize;
        let Some(frame) = data.get(pos..pos + 5 + length) else { break };
        if frame[0] != 4 || !(32..=32 + 65536).contains(&length) {
            break;
        }
        let key: [u8; 32] = frame[5..37].try_into().unwrap();
        if expected.last().is_none_or(|run| run.0 != key) {
            expected.push((key, Vec::new(), 0));
        }
        let run = expected.last_mut().unwrap();
        run.1.push(5);
        run.1.extend(&frame[1..5]);
        run.1.extend(source);
        run.1.extend(&frame[37..]);
        run.2 += 1;
        pos += 5 + length;
    }
    assert_eq!(runs, expected);
    assert_eq!(result.pos, pos);
    assert_eq!(walked[pos..], data[pos..]);
    assert_eq!(result.packets, runs.iter().map(|run| run.2).sum::<usize>());
    assert_eq!(result.size, pos - 37 * result.packets);
});
