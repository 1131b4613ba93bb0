package main

import (
	"encoding/binary"
	"math/rand/v2"
)

// slot is one packet of a schedule: packet k is due k/rate seconds after the start.
type slot struct {
	from, to uint32
	stream   uint32 // number of the (from, to) stream
}

// schedule decides in advance which peer sends to which, so that a run of thousands of peers draws
// no random numbers and allocates no memory for packets while it is measured.
type schedule struct {
	slots   []slot
	streams int
}

// newSchedule spreads n packets over peers. All peers send equally often, in an order that is
// drawn anew in every turn; each packet goes to one of the dests peers that follow its sender.
func newSchedule(n, peers, dests int, seed uint64) *schedule {
	rng := rand.New(rand.NewPCG(seed, 9))
	s := &schedule{slots: make([]slot, n)}
	streams := map[uint64]uint32{}
	var order []int
	for k := range s.slots {
		if k%peers == 0 {
			order = rng.Perm(peers)
		}
		from := order[k%peers]
		to := (from + 1 + rng.IntN(dests)) % peers
		id := uint64(from)<<32 | uint64(to)
		stream, known := streams[id]
		if !known {
			stream = uint32(len(streams))
			streams[id] = stream
		}
		s.slots[k] = slot{uint32(from), uint32(to), stream}
	}
	s.streams = len(streams)
	return s
}

// fillFrame writes the SendPacket frame of sequence number seq into frame, without an allocation if
// that has the capacity.
func fillFrame(frame []byte, dst []byte, x slot, seq uint64, at int64, fill []byte) []byte {
	frame = append(frame[:0], 0x04)
	frame = binary.BigEndian.AppendUint32(frame, uint32(keyLen+headerLen+len(fill)))
	frame = append(frame, dst...)
	frame = binary.BigEndian.AppendUint32(frame, x.from)
	frame = binary.BigEndian.AppendUint32(frame, x.to)
	frame = binary.BigEndian.AppendUint64(frame, seq)
	frame = binary.BigEndian.AppendUint64(frame, uint64(at))
	return append(frame, fill...)
}
