package main

import (
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("badframes", "each illegal length ends exactly the connection that sent it", badFrames)
	register("unknownframes", "unknown and misplaced frames are skipped, up to a length that only old relays do not know", unknownFrames)
	register("fragments", "frames arrive whole however the bytes are cut or joined", fragments)
}

func badFrames(r *run) {
	type bad struct {
		name  string
		mesh  bool // from a client with mesh rights, so that only the length is wrong
		bytes []byte
	}
	a, b := r.peer("a", peerOpts{}), r.peer("b", peerOpts{})
	k := b.pub.AppendTo(nil)
	zeros := func(n int) []byte { return make([]byte, n) }
	cases := []bad{
		{"empty SendPacket", false, frame(derp.FrameSendPacket)},
		{"SendPacket of 31 bytes", false, frame(derp.FrameSendPacket, k[:31])},
		{"SendPacket with 65537 bytes of packet", false, frame(derp.FrameSendPacket, k, zeros(65537))},
		{"SendPacket of 4 GiB", false, append(frameHeader(derp.FrameSendPacket, 1<<32-1), k...)},
		{"ping of 0 bytes", false, frame(derp.FramePing)},
		{"ping of 7 bytes", false, frame(derp.FramePing, zeros(7))},
		{"ping of 1001 bytes", false, frame(derp.FramePing, zeros(1001))},
		{"empty home note", false, frame(derp.FrameNotePreferred)},
		{"home note of 2 bytes", false, frame(derp.FrameNotePreferred, zeros(2))},
		{"WatchConns of 1 byte, no rights", false, frame(derp.FrameWatchConns, zeros(1))},
		{"ClosePeer of 31 bytes, no rights", false, frame(derp.FrameClosePeer, k[:31])},
	}
	if !r.cfg.mesh.IsZero() {
		cases = append(cases,
			bad{"WatchConns of 1 byte", true, frame(derp.FrameWatchConns, zeros(1))},
			bad{"empty ClosePeer", true, frame(derp.FrameClosePeer)},
			bad{"ClosePeer of 31 bytes", true, frame(derp.FrameClosePeer, k[:31])},
			bad{"ClosePeer of 33 bytes", true, frame(derp.FrameClosePeer, k, zeros(1))},
			bad{"empty ForwardPacket", true, frame(derp.FrameForwardPacket)},
			bad{"ForwardPacket of 63 bytes", true, frame(derp.FrameForwardPacket, k, k[:31])},
			bad{"ForwardPacket with 65537 bytes of packet", true, frame(derp.FrameForwardPacket, k, k, zeros(65537))},
		)
	}
	for _, c := range cases {
		r.at("%s", c.name)
		o := peerOpts{low: true}
		if c.mesh {
			o.mesh = r.cfg.mesh
		}
		p := r.peer("sender", o)
		before := r.bytes(40)
		p.send(b.pub, before)
		b.wantPacket(p.pub, before)
		p.sendRaw(c.bytes)
		p.wantClosed()
		b.wantGone(p.pub, derp.PeerGoneReasonDisconnected)
		a.send(b.pub, before)
		b.wantPacket(a.pub, before)
	}
	a.quiet()
	b.quiet()
	r.fact("cases", len(cases))

	r.at("what precedes a bad frame in the same write still counts")
	c, p := r.peer("c", peerOpts{}), r.peer("sender", peerOpts{low: true})
	data := r.bytes(40)
	p.sendRaw(append(frame(derp.FrameSendPacket, c.pub.AppendTo(nil), data), cases[0].bytes...))
	c.wantPacket(p.pub, data)
	p.wantClosed()
	// Whether c also gets PeerGone for the sender is a race in derper: it takes note of the sender when it
	// writes the packet, which may be after the sender's end.
}

func unknownFrames(r *run) {
	p := r.peer("p", peerOpts{low: true})
	someone := key.NewNode()
	alive := func() {
		data := r.bytes(33)
		p.sendRaw(frame(derp.FrameSendPacket, p.pub.AppendTo(nil), data))
		p.wantPacket(p.pub, data)
	}
	for _, t := range []byte{0x00, 0x0b, 0x0f, 0x16, 0x7f, 0xff} {
		for _, n := range []int{0, 1, 5, 4096, longestUnknown} {
			r.at("type %#02x with %d bytes", t, n)
			p.sendRaw(frame(derp.FrameType(t), make([]byte, n)))
			alive()
		}
	}
	r.unknownTooLong()
	for _, c := range []struct {
		name  string
		bytes []byte
	}{
		{"pong", frame(derp.FramePong, make([]byte, 8))},
		{"short pong", frame(derp.FramePong, make([]byte, 3))},
		{"ServerKey", frame(derp.FrameServerKey, []byte(derp.Magic), make([]byte, 32))},
		{"second ClientInfo", frame(derp.FrameClientInfo, someone.Public().AppendTo(nil), make([]byte, 80))},
		{"short ClientInfo", frame(derp.FrameClientInfo)},
		{"ServerInfo", frame(derp.FrameServerInfo, make([]byte, 30))},
		{"RecvPacket", frame(derp.FrameRecvPacket, p.pub.AppendTo(nil), []byte("x"))},
		{"KeepAlive", frame(derp.FrameKeepAlive)},
		{"PeerGone", frame(derp.FramePeerGone, p.pub.AppendTo(nil), []byte{0})},
		{"PeerPresent", frame(derp.FramePeerPresent, p.pub.AppendTo(nil))},
		{"Health", frame(derp.FrameHealth, []byte("ill"))},
		{"Restarting", frame(derp.FrameRestarting, make([]byte, 8))},
	} {
		r.at("%s", c.name)
		p.sendRaw(c.bytes)
		alive()
	}
	p.quiet()
}

// longestUnknown is how long an unknown frame may be for derper since v1.104, and for pyderp.
const longestUnknown = 65568

// unknownTooLong sends more than that. The older derper reads as much as is announced; the others hang up
// at the header, without waiting for what is announced.
func (r *run) unknownTooLong() {
	for _, n := range []int{longestUnknown + 1, 3 << 20} {
		r.at("%d bytes of an unknown type", n)
		p := r.peer("too long", peerOpts{low: true})
		if r.cfg.kind != kindDerper {
			p.sendRaw(frameHeader(0x7f, n))
			p.wantClosed()
			continue
		}
		data := r.bytes(33)
		p.sendRaw(frame(0x7f, make([]byte, n)))
		p.sendRaw(frame(derp.FrameSendPacket, p.pub.AppendTo(nil), data))
		p.wantPacket(p.pub, data)
	}
}

// fragments also covers what a websocket leaves open: its messages need not match the frames.
func fragments(r *run) {
	p := r.peer("p", peerOpts{low: true})
	one, two := r.bytes(300), r.bytes(5000)
	both := append(frame(derp.FrameSendPacket, p.pub.AppendTo(nil), one),
		frame(derp.FrameSendPacket, p.pub.AppendTo(nil), two)...)
	for _, size := range []int{1, 4, 5, 6, 36, 37, 38, 1000, len(both)} {
		r.at("pieces of %d bytes", size)
		for at := 0; at < len(both); at += size {
			_, err := p.st.nc.Write(both[at:min(at+size, len(both))])
			r.must(err, "write")
		}
		p.wantPacket(p.pub, one)
		p.wantPacket(p.pub, two)
	}
	p.quiet()
}
