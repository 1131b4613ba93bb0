//! The walk over the frames of a read, which turns SendPackets into RecvPackets in place.
//!
//! It does the same as the inner loop of `pyderp.relay.lane.receive`; tests compare the two.

use std::ops::Range;

/// Bytes of a node's public key.
pub const KEY_LEN: usize = 32;
/// Bytes of a frame's header: type and length.
const FRAME_HEADER_LEN: usize = 5;
/// The offset of the packet in a frame.
pub const PACKET: usize = FRAME_HEADER_LEN + KEY_LEN;
const MAX_PACKET_SIZE: usize = 64 * 1024;
const SEND_PACKET: u8 = 4;
const RECV_PACKET: u8 = 5;
const DISCO_MAGIC: &[u8] = "TS💬".as_bytes();
/// Bytes of the magic, the sender's key and the nonce together.
const DISCO_MIN_LEN: usize = DISCO_MAGIC.len() + 32 + 24;

/// Neighbouring frames to one destination.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The destination's key.
    pub key: [u8; KEY_LEN],
    /// The frames' place in the buffer.
    pub place: Range<usize>,
    /// The number of frames.
    pub count: usize,
}

/// Where a walk stopped, and what it counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The position of the first frame that was not converted, or the end of the data.
    pub pos: usize,
    /// Packets converted.
    pub packets: usize,
    /// Bytes of the packets, without headers and keys.
    pub size: usize,
    /// Packets that are disco messages (path discovery).
    pub disco: usize,
}

/// Turn complete SendPackets of an allowed length into RecvPackets, in place.
///
/// Stops at the first frame that is of another type, incomplete, or of a wrong length, and leaves
/// it unchanged.
///
/// * `data`: the received bytes; a frame begins at the first.
/// * `source`: the sender's key, which replaces the destination in each frame.
/// * `take`: is called with each run and its converted frames.
pub fn walk(data: &mut [u8], source: &[u8; KEY_LEN], mut take: impl FnMut(&Run, &[u8])) -> Walked {
    let mut walked = Walked::default();
    let mut run = Run { key: [0; KEY_LEN], place: 0..0, count: 0 };
    let mut pos = 0;
    while let Some(stop) = whole_packet(data, pos) {
        let frame = &mut data[pos..stop];
        walked.disco += usize::from(looks_like_disco(&frame[PACKET..]));
        // Both types of frame have the same layout: only the type and the key change.
        frame[0] = RECV_PACKET;
        let Some(key) = frame[FRAME_HEADER_LEN..].first_chunk_mut() else { break };
        let destination = std::mem::replace(key, *source);
        // The first run has no key yet, and a destination of zeros is possible.
        if run.key != destination || run.count == 0 {
            if run.count > 0 {
                take(&run, &data[run.place.clone()]);
            }
            walked.packets += run.count;
            run = Run { key: destination, place: pos..pos, count: 0 };
        }
        run.count += 1;
        run.place.end = stop;
        pos = stop;
    }
    if run.count > 0 {
        take(&run, &data[run.place.clone()]);
    }
    walked.packets += run.count;
    walked.pos = pos;
    walked.size = pos - walked.packets * PACKET;
    walked
}

/// The end of the SendPacket at `pos`; `None` if there is no complete and valid one.
fn whole_packet(data: &[u8], pos: usize) -> Option<usize> {
    // Header and key at once: a frame without a complete key is not valid either.
    let header = data.get(pos..pos + PACKET)?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if header[0] != SEND_PACKET || !(KEY_LEN..=KEY_LEN + MAX_PACKET_SIZE).contains(&length) {
        return None;
    }
    let stop = pos + FRAME_HEADER_LEN + length;
    (stop <= data.len()).then_some(stop)
}

fn looks_like_disco(packet: &[u8]) -> bool {
    packet.len() >= DISCO_MIN_LEN && packet.starts_with(DISCO_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: [u8; KEY_LEN] = [9; KEY_LEN];

    fn frame(kind: u8, destination: u8, packet: &[u8]) -> Vec<u8> {
        let length = u32::try_from(KEY_LEN + packet.len()).unwrap();
        let mut frame = vec![kind];
        frame.extend(length.to_be_bytes());
        frame.extend([destination; KEY_LEN]);
        frame.extend(packet);
        frame
    }

    fn collect(data: &mut [u8]) -> (Walked, Vec<(u8, Vec<u8>, usize)>) {
        let mut runs = Vec::new();
        let walked =
            walk(data, &SOURCE, |run, data| runs.push((run.key[0], data.to_vec(), run.count)));
        (walked, runs)
    }

    fn received(packets: &[&[u8]]) -> Vec<u8> {
        packets.iter().flat_map(|packet| frame(RECV_PACKET, SOURCE[0], packet)).collect()
    }

    #[test]
    fn neighbours_to_one_destination_are_a_run() {
        let mut data: Vec<u8> = [(1, "a"), (1, "bc"), (2, ""), (1, "d"), (0, "e")]
            .iter()
            .flat_map(|(to, packet)| frame(SEND_PACKET, *to, packet.as_bytes()))
            .collect();
        let end = data.len();
        let (walked, runs) = collect(&mut data);
        assert_eq!(walked, Walked { pos: end, packets: 5, size: 5, disco: 0 });
        let expected = [
            (1, received(&[b"a", b"bc"]), 2),
            (2, received(&[b""]), 1),
            (1, received(&[b"d"]), 1),
            (0, received(&[b"e"]), 1),
        ];
        assert_eq!(runs, expected);
    }

    #[test]
    fn it_stops_at_what_is_no_whole_packet() {
        let packet = frame(SEND_PACKET, 1, b"packet");
        let mut short = frame(SEND_PACKET, 1, b"");
        short[4] = 31;
        let mut long = frame(SEND_PACKET, 1, &vec![0; MAX_PACKET_SIZE + 1]);
        let cut = &frame(SEND_PACKET, 1, b"packet")[..42];
        for odd in [&frame(6, 1, b"packet")[..], &short, &long.clone(), cut, &[4, 0], &[]] {
            let mut data = packet.clone();
            data.extend(odd);
            let (walked, runs) = collect(&mut data);
            assert_eq!(walked.pos, packet.len());
            assert_eq!(runs, [(1, received(&[b"packet"]), 1)]);
            assert_eq!(&data[walked.pos..], odd, "it is left as it was");
        }
        long.pop();
        long[1..5]
            .copy_from_slice(&u32::try_from(KEY_LEN + MAX_PACKET_SIZE).unwrap().to_be_bytes());
        assert_eq!(collect(&mut long).0.packets, 1);
    }

    #[test]
    fn disco_is_known_by_magic_and_length() {
        let mut disco = DISCO_MAGIC.to_vec();
        disco.resize(DISCO_MIN_LEN, 0);
        let mut data = frame(SEND_PACKET, 1, &disco);
        data.extend(frame(SEND_PACKET, 1, &disco[1..]));
        data.extend(frame(SEND_PACKET, 1, &disco[..DISCO_MIN_LEN - 1]));
        assert_eq!(collect(&mut data).0.disco, 1);
    }
}
