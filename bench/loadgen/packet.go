package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// A packet's payload, integers big-endian:
//
//	sender    4  index of the sending pair
//	receiver  4  index of the receiving pair
//	sequence  8  counts from 0 in every (sender, receiver) stream
//	stamp     8  when it was sent, in ns since the program began (rate), else 0
//	filler       the sender's own pseudo-random bytes, up to -size
//
// A damaged, misrouted, repeated or reordered packet ends the program. A gap in the sequence
// numbers is none of these, as a relay may drop: the packets in it are lost.
const (
	offReceiver = 4
	offSequence = 8
	offStamp    = 16
	headerLen   = 24

	keyLen       = 32
	offPayload   = derp.FrameHeaderLen + keyLen
	frameSeqOff  = offPayload + offSequence
	frameTimeOff = offPayload + offStamp
)

var errDone = errors.New("done")

// filler returns the bytes that fill the sender's packets after the header.
func filler(sender, size int) []byte {
	rng := rand.New(rand.NewPCG(uint64(sender), 0xde59))
	b := make([]byte, size-headerLen)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// appendFrame appends a SendPacket frame of sequence number and stamp 0.
func appendFrame(b []byte, dst key.NodePublic, sender, receiver int, fill []byte) []byte {
	b = append(b, byte(derp.FrameSendPacket))
	b = binary.BigEndian.AppendUint32(b, uint32(keyLen+headerLen+len(fill)))
	b = dst.AppendTo(b)
	b = binary.BigEndian.AppendUint32(b, uint32(sender))
	b = binary.BigEndian.AppendUint32(b, uint32(receiver))
	b = append(b, make([]byte, 16)...)
	return append(b, fill...)
}

// traffic is what all connections of a run share: their keys, and the signal that it ends.
type traffic struct {
	pairs []*pair
	keys  [][]byte // public key of each sender
	fills [][]byte // filler of each sender
	over  atomic.Bool
}

// pair is a sending and a receiving connection. What the sender sends need not go to the
// receiver of its own pair.
type pair struct {
	index int
	tx    *conn
	rx    *conn

	got     atomic.Int64  // packets of this sender that arrived, anywhere
	settled atomic.Int64  // the same, and those that a gap shows to be lost
	credit  chan struct{} // gets a value when settled grows

	expect []uint64 // the receiver's: next sequence number by sender
}

// openTraffic dials all pairs.
func openTraffic(cfg *config) (*traffic, error) {
	conns, err := dialMany(cfg, 2*cfg.pairs, packetReadBuf)
	if err != nil {
		return nil, err
	}
	t := &traffic{}
	for i := range cfg.pairs {
		p := &pair{
			index:  i,
			tx:     conns[2*i],
			rx:     conns[2*i+1],
			credit: make(chan struct{}, 1),
			expect: make([]uint64, cfg.pairs),
		}
		t.pairs = append(t.pairs, p)
		t.keys = append(t.keys, p.tx.pub.AppendTo(nil))
		t.fills = append(t.fills, filler(i, cfg.size))
	}
	return t, nil
}

// check verifies a RecvPacket frame's body that arrived at p's receiver, and returns the sender
// with the number of packets lost just before this one.
func (t *traffic) check(p *pair, body []byte) (from *pair, gap uint64, err error) {
	if len(body) < keyLen+headerLen {
		return nil, 0, fmt.Errorf("a packet arrived short: %d bytes", len(body)-keyLen)
	}
	src, payload := body[:keyLen], body[keyLen:]
	sender := binary.BigEndian.Uint32(payload)
	if int(sender) >= len(t.pairs) {
		return nil, 0, fmt.Errorf("a packet arrived damaged: from sender %d", sender)
	}
	seq, want := binary.BigEndian.Uint64(payload[offSequence:]), p.expect[sender]
	switch {
	case !bytes.Equal(src, t.keys[sender]):
		return nil, 0, fmt.Errorf("a packet of sender %d arrived under another's key", sender)
	case !bytes.Equal(payload[headerLen:], t.fills[sender]):
		return nil, 0, fmt.Errorf("a packet of sender %d arrived damaged: %d bytes", sender, len(payload))
	case binary.BigEndian.Uint32(payload[offReceiver:]) != uint32(p.index):
		return nil, 0, fmt.Errorf("a packet of sender %d arrived at receiver %d instead of %d",
			sender, p.index, binary.BigEndian.Uint32(payload[offReceiver:]))
	case seq < want:
		return nil, 0, fmt.Errorf("a packet of sender %d arrived twice or out of order: %d after %d", sender, seq, want-1)
	}
	p.expect[sender] = seq + 1
	return t.pairs[sender], seq - want, nil
}

// receive checks and counts the packets that arrive at p, and calls f, if not nil, with each payload.
// It returns when the run is over; a connection that ends earlier is an error.
func (t *traffic) receive(p *pair, f func(payload []byte)) error {
	err := p.rx.readFrames(func(ft derp.FrameType, body []byte) error {
		if ft != derp.FrameRecvPacket {
			return nil
		}
		from, gap, err := t.check(p, body)
		if err != nil {
			return err
		}
		from.got.Add(1)
		from.settled.Add(int64(1 + gap))
		select {
		case from.credit <- struct{}{}:
		default:
		}
		if f != nil {
			f(body[keyLen:])
		}
		return nil
	})
	if t.over.Load() {
		return nil
	}
	return fmt.Errorf("receiver %d: %w", p.index, err)
}

// drainSender reads p's sending connection, where nothing but keepalives may arrive.
func (t *traffic) drainSender(p *pair) error {
	err := p.tx.readFrames(func(ft derp.FrameType, body []byte) error {
		if ft == derp.FrameRecvPacket {
			return fmt.Errorf("a packet of %d bytes arrived at a connection it was not for", len(body)-keyLen)
		}
		return nil
	})
	if t.over.Load() {
		return nil
	}
	return fmt.Errorf("sender %d: %w", p.index, err)
}

// received counts the packets that have arrived so far.
func (t *traffic) received() int64 {
	var n int64
	for _, p := range t.pairs {
		n += p.got.Load()
	}
	return n
}

// close ends the run.
func (t *traffic) close() {
	t.over.Store(true)
	for _, p := range t.pairs {
		p.tx.nc.Close()
		p.rx.nc.Close()
	}
}
