//! The walk over a read's frames: SendPackets become RecvPackets where they stand.
//!
//! Its twin in Python is the inner loop of `pyderp.relay.lane.receive`.

use std::ops::Range;

/// Bytes of a node's public key.
pub const KEY_LEN: usize = 32;
/// Bytes in front of a frame's contents: type and length.
const FRAME_HEADER_LEN: usize = 5;
/// Where the packet starts in a frame.
pub const PACKET: usize = FRAME_HEADER_LEN + KEY_LEN;
const MAX_PACKET_SIZE: usize = 64 * 1024;
const SEND_PACKET: u8 = 4;
const RECV_PACKET: u8 = 5;
const DISCO_MAGIC: &[u8] = "TS💬".as_bytes();
/// Magic, sender's key and nonce.
const DISCO_MIN_LEN: usize = DISCO_MAGIC.len() + 32 + 24;

/// Neighbouring frames to one destination.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The destination's key.
    pub key: [u8; KEY_LEN],
    /// Where the frames stand in the buffer.
    pub place: Range<usize>,
    /// How many there are.
    pub count: usize,
}

/// What a walk counted, and where it stopped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The first frame that was not taken, or the end.
    pub pos: usize,
    /// Packets seen.
    pub packets: usize,
    /// Their bytes, without headers and keys.
    pub size: usize,
    /// How many of them are messages of path discovery.
    pub disco: usize,
}

/// Walk over whole SendPackets of an allowed length, and make RecvPackets of them.
///
/// Stops at the first frame that is none, or is not whole; that one is left as it is.
///
/// * `data`: from the first frame on, to the end of what was received.
/// * `source`: the key that takes the destination's place.
/// * `take`: gets each run, and the bytes that the walk is done with.
pub fn walk(data: &mut [u8], source: &[u8; KEY_LEN], mut take: impl FnMut(&Run, &[u8])) -> Walked {
    let mut walked = Walked::default();
    let mut run = Run { key: [0; KEY_LEN], place: 0..0, count: 0 };
    let mut pos = 0;
    while let Some(stop) = whole_packet(data, pos) {
        let frame = &mut data[pos..stop];
        walked.disco += usize::from(looks_like_disco(&frame[PACKET..]));
        frame[0] = RECV_PACKET;
        let Some(key) = frame[FRAME_HEADER_LEN..].first_chunk_mut() else { break };
        let destination = std::mem::replace(key, *source);
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

/// Where the SendPacket at `pos` ends; `None` if there is none, or not all of it.
fn whole_packet(data: &[u8], pos: usize) -> Option<usize> {
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
