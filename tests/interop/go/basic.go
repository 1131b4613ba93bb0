package main

import (
	"context"
	"encoding/json"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("sendrecv", "three clients, 0 to 1 to 2; no other client gets a packet", sendRecv)
	register("send_self", "a packet to one's own key comes back", sendSelf)
	register("ping", "derphttp's Ping, and pongs that carry the ping's eight bytes", ping)
	register("pingflood", "2000 pipelined pings: the connection stays up and answers", pingFlood)
	register("unknown_dest", "only disco to an unknown key is answered, with PeerGone not-here, 3 in a burst", unknownDest)
	register("notepreferred", "home notes are accepted; a wrong length ends the connection", notePreferred)
	register("homegauge", "home notes move the gauge in /debug/vars once, and leaving moves it back", homeGauge)
	register("reconnect", "derphttp's client comes back by itself after the relay closed it", reconnect)
}

func sendRecv(r *run) {
	a, b, c := r.peer("a", peerOpts{}), r.peer("b", peerOpts{}), r.peer("c", peerOpts{})
	for i := range 3 {
		r.at("round %d", i)
		one, two := r.bytes(100+i), r.bytes(1200+i)
		a.send(b.pub, one)
		b.wantPacket(a.pub, one)
		b.send(c.pub, two)
		c.wantPacket(b.pub, two)
	}
	r.at("silence")
	a.quiet()
	b.quiet()
	c.quiet()
	r.check(a.hi.ServerPublicKey() == b.hi.ServerPublicKey(), "two clients saw two server keys")
}

func sendSelf(r *run) {
	a := r.peer("a", peerOpts{})
	for _, n := range []int{0, 1, 61, 62, 1200} {
		data := r.bytes(n)
		a.send(a.pub, data)
		a.wantPacket(a.pub, data)
	}
	disco := r.disco(62)
	a.send(a.pub, disco)
	a.wantPacket(a.pub, disco)
	a.quiet()
}

func ping(r *run) {
	a := r.peer("a", peerOpts{})
	a.barrier()
	ctx, cancel := context.WithTimeout(r.ctx, stepLimit)
	defer cancel()
	r.must(a.hi.Ping(ctx), "derphttp Ping")

	r.at("raw pings")
	b := r.peer("b", peerOpts{low: true})
	for _, n := range []int{8, 9, 1000} {
		data := r.bytes(n)
		b.sendRaw(frame(derp.FramePing, data))
		r.check(b.next() == derp.PongMessage(data[:8]), "no pong for a ping of %d bytes", n)
	}
	b.quiet()
}

func pingFlood(r *run) {
	const pings = 2000
	a := r.peer("a", peerOpts{low: true})
	sent := map[derp.PongMessage]bool{}
	var burst []byte
	for range pings {
		data := r.bytes(8)
		sent[derp.PongMessage(data)] = true
		burst = append(burst, frame(derp.FramePing, data)...)
	}
	a.sendRaw(burst)
	pongs := 0
	for _, m := range append([]derp.ReceivedMessage{a.next()}, a.barrierAfterFlood(sent)...) {
		pong, ok := m.(derp.PongMessage)
		r.check(ok && sent[pong], "got %s, want a pong for one of the pings", describe(m))
		delete(sent, pong)
		pongs++
	}
	r.fact("pongs", pongs)
	a.quiet()
}

// barrierAfterFlood is a barrier that tries again: a relay drops pings while a pong is still pending.
func (p *peer) barrierAfterFlood(sent map[derp.PongMessage]bool) (before []derp.ReceivedMessage) {
	for range 50 {
		var data [8]byte
		copy(data[:], p.r.bytes(8))
		p.r.must(p.SendPing(data), "%s: ping", p.name)
		for {
			m, ok := p.poll(settle)
			if !ok {
				p.r.check(!p.isClosed(), "%s: closed by a flood of pings", p.name)
				break
			}
			if m == derp.PongMessage(data) {
				return before
			}
			before = append(before, m)
		}
	}
	p.r.fatalf("%s: no answer to any ping after the flood", p.name)
	return nil
}

func unknownDest(r *run) {
	a := r.peer("a", peerOpts{})
	nobody := key.NewNode().Public()
	r.at("not disco")
	a.send(nobody, r.bytes(200))
	notQuite := r.disco(61) // one byte short of a disco message
	a.send(nobody, notQuite)
	a.quiet()

	r.at("disco")
	start := time.Now()
	for range 6 {
		a.send(nobody, r.disco(62))
	}
	// derper hands each to its sender in a goroutine: a ping's answer may overtake them.
	const burst = 3
	for range burst {
		a.wantGone(nobody, derp.PeerGoneReasonNotHere)
	}
	got := burst
	for _, m := range a.barrier() {
		r.check(m == derp.PeerGoneMessage{Peer: nobody, Reason: derp.PeerGoneReasonNotHere}, "got %s", describe(m))
		got++
	}
	// The limiter refills one a second, which only a very slow machine can notice here.
	most := 3 + int(time.Since(start)/time.Second)
	r.fact("not_here", got)
	r.check(got <= most, "%d PeerGone for a burst of 6, want 3", got)

	r.at("the limiter is the connection's, not the destination's")
	other := key.NewNode().Public()
	a.send(other, r.disco(100))
	if rest := a.barrier(); time.Since(start) < time.Second {
		r.check(len(rest) == 0, "a fourth PeerGone, for another key")
	}
}

func notePreferred(r *run) {
	a := r.peer("a", peerOpts{low: true})
	for _, b := range []byte{1, 1, 0, 0, 7} {
		a.sendRaw(frame(derp.FrameNotePreferred, []byte{b}))
	}
	a.quiet()
	h := r.peer("h", peerOpts{})
	h.hi.NotePreferred(true)
	h.hi.NotePreferred(false)
	h.quiet()
	for _, n := range []int{0, 2, 32} {
		r.at("length %d", n)
		bad := r.peer("bad", peerOpts{low: true})
		bad.sendRaw(frame(derp.FrameNotePreferred, make([]byte, n)))
		bad.wantClosed()
	}
	r.at("others live on")
	a.quiet()
	h.quiet()
}

func homeGauge(r *run) {
	gauge := func() int {
		_, body := r.response("GET", head("GET /debug/vars HTTP/1.1", host))
		var vars struct {
			Derp map[string]any `json:"derp"`
		}
		r.must(json.Unmarshal([]byte(body), &vars), "/debug/vars")
		n, ok := vars.Derp["gauge_current_home_connections"].(float64)
		r.check(ok, "no home gauge in /debug/vars")
		return int(n)
	}
	base := gauge()
	a := r.peer("a", peerOpts{low: true})
	for _, step := range []struct {
		note byte
		want int
	}{{1, 1}, {1, 1}, {7, 1}, {0, 0}, {0, 0}, {1, 1}} {
		r.at("note %d", step.note)
		a.sendRaw(frame(derp.FrameNotePreferred, []byte{step.note}))
		a.quiet() // so it has been read
		got := gauge() - base
		r.check(got == step.want, "gauge moved by %d, want %d", got, step.want)
	}
	a.close()
	r.eventually("the home of a client that left does not count", func() bool { return gauge() == base })
}

func reconnect(r *run) {
	r.needMesh()
	m, b := r.peer("mesh", peerOpts{mesh: r.cfg.mesh}), r.peer("b", peerOpts{})
	a := r.peer("a", peerOpts{})
	r.must(m.ClosePeer(a.pub), "ClosePeer")
	a.wantClosed()
	r.at("second connection")
	data := r.bytes(300)
	type result struct {
		m   derp.ReceivedMessage
		gen int
		err error
	}
	got := make(chan result, 1)
	go func() {
		m, gen, err := a.hi.RecvDetail() // connects by itself
		got <- result{m, gen, err}
	}()
	select {
	case res := <-got:
		r.must(res.err, "second connection")
		_, ok := res.m.(derp.ServerInfoMessage)
		r.check(ok && res.gen == 2, "second connection began with %s, generation %d", describe(res.m), res.gen)
	case <-time.After(stepLimit):
		r.fatalf("no second connection")
	}
	b.send(a.pub, data)
	go func() {
		m, gen, err := a.hi.RecvDetail()
		got <- result{m, gen, err}
	}()
	select {
	case res := <-got:
		r.must(res.err, "packet on the second connection")
		pkt, ok := res.m.(derp.ReceivedPacket)
		r.check(ok && pkt.Source == b.pub, "got %s", describe(res.m))
		r.must(sameBytes(pkt.Data, data), "packet")
	case <-time.After(stepLimit):
		r.fatalf("no packet on the second connection")
	}
}

func (r *run) needMesh() {
	r.check(!r.cfg.mesh.IsZero(), "this scenario needs -mesh-key")
}
