package main

import (
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("peergone", "clients that received from a peer get its PeerGone, and no others", peerGone)
	register("duplicates", "two connections of one key: which gets the traffic, and no PeerGone until the last one ends", duplicates)
}

func peerGone(r *run) {
	const left = derp.PeerGoneReasonDisconnected
	k := key.NewNode()
	receiver, sender, stranger := r.peer("receiver", peerOpts{}), r.peer("sender", peerOpts{}), r.peer("stranger", peerOpts{})
	x := r.peer("x", peerOpts{key: k})
	data := r.bytes(64)

	x.send(receiver.pub, data)
	receiver.wantPacket(x.pub, data)
	sender.send(x.pub, data) // having only sent to it is not enough
	x.wantPacket(sender.pub, data)

	r.at("first departure")
	x.close()
	receiver.wantGone(x.pub, left)
	receiver.quiet()
	sender.quietFor(settle)
	stranger.quiet()

	r.at("second departure")
	x = r.peer("x again", peerOpts{key: k})
	x.send(receiver.pub, data)
	receiver.wantPacket(x.pub, data)
	x.close()
	// The end is certain once no client has its home here.
	r.untilUnknown(sender, x.pub)
	again := false
	if m, ok := receiver.poll(r.kindWait(2*settle, stepLimit)); ok {
		r.check(m == derp.PeerGoneMessage{Peer: x.pub, Reason: left}, "got %s", describe(m))
		again = true
	}
	r.fact("second_departure_told", again)
	// Documented difference: upstream forgets to clear the receiver's memory of the sender, so that it is
	// sent only once for each connection.
	r.check(again == (r.cfg.kind == kindPyderp), "second departure sent: %v", again)

	r.at("a departure before the first packet")
	y := r.peer("y", peerOpts{})
	y.close()
	r.untilUnknown(sender, y.pub)
	receiver.quietFor(settle)
}

// kindWait is how long to wait for what derper will never say and pyderp will.
func (r *run) kindWait(derper, pyderp time.Duration) time.Duration {
	if r.cfg.derper() {
		return derper
	}
	return pyderp
}

// untilUnknown waits until the relay no longer knows a key, by asking with disco messages.
//
// While the key is known the question is swallowed, and costs nothing of the limiter for the answers.
func (r *run) untilUnknown(p *peer, who key.NodePublic) {
	answer := derp.PeerGoneMessage{Peer: who, Reason: derp.PeerGoneReasonNotHere}
	deadline := time.Now().Add(stepLimit)
	for time.Now().Before(deadline) {
		p.send(who, r.disco(62))
		m, ok := p.poll(20 * time.Millisecond)
		if !ok {
			continue
		}
		r.check(m == answer, "%s: got %s", p.name, describe(m))
		for _, m := range p.barrier() { // a slow answer may have been asked for twice
			r.check(m == answer, "%s: got %s", p.name, describe(m))
		}
		return
	}
	r.fatalf("the relay still knows %v", who)
}

// quietFor requires silence for a time, for what no event orders.
func (p *peer) quietFor(d time.Duration) {
	if m, ok := p.poll(d); ok {
		p.r.fatalf("%s: unexpected %s", p.name, describe(m))
	}
	p.quiet()
}

func duplicates(r *run) {
	k := key.NewNode()
	b := r.peer("b", peerOpts{})
	old := r.peer("old", peerOpts{key: k, low: true})
	known := r.bytes(10)
	old.send(b.pub, known) // from here on b gets PeerGone when the key leaves
	b.wantPacket(old.pub, known)

	deliver := func(step string, to, notTo *peer) {
		r.at("%s", step)
		data := r.bytes(500)
		b.send(k.Public(), data)
		to.wantPacket(b.pub, data)
		// No ping here: any frame of the other connection would move the traffic.
		if m, ok := notTo.poll(0); ok {
			r.fatalf("%s: unexpected %s", notTo.name, describe(m))
		}
	}
	newer := r.peer("newer", peerOpts{key: k, low: true})
	deliver("newest wins", newer, old)

	for _, talk := range []struct {
		name  string
		bytes []byte
	}{
		{"unknown frame", frame(0x7f, []byte("x"))},
		{"packet", frame(derp.FrameSendPacket, b.pub.AppendTo(nil), known)},
		{"home note", frame(derp.FrameNotePreferred, []byte{0})},
		{"pong", frame(derp.FramePong, make([]byte, 8))},
	} {
		speak := func(who *peer) {
			r.at("%s from %s", talk.name, who.name)
			who.sendRaw(talk.bytes)
			if talk.name == "packet" {
				b.wantPacket(k.Public(), known)
				return
			}
			who.barrier() // the relay has read what came before this
		}
		speak(old)
		deliver(talk.name+" of the old one moves the traffic to it", old, newer)
		speak(newer)
		deliver(talk.name+" of the newer one moves it back", newer, old)
	}

	third := r.peer("third", peerOpts{key: k, low: true})
	deliver("a third connection takes over", third, newer)
	r.at("the third one leaves")
	third.close()
	// A client gets no message when a duplicate ends. The newer one, which spoke last before, takes over
	// by itself: packets arrive there once the relay has noticed.
	r.eventually("traffic returns to the one that spoke before", func() bool {
		b.send(k.Public(), known)
		m, ok := newer.poll(settle)
		r.check(!ok || isPacket(m, b.pub, known), "newer: got %s", describe(m))
		return ok
	})
	newer.close()
	r.eventually("the survivor receives", func() bool {
		b.send(k.Public(), known)
		m, ok := old.poll(settle)
		r.check(!ok || isPacket(m, b.pub, known), "old: got %s", describe(m))
		return ok
	})
	r.at("no PeerGone while one connection is left")
	b.quietFor(settle)
	r.at("the last one leaves")
	old.close()
	b.wantGone(k.Public(), derp.PeerGoneReasonDisconnected)
	b.quiet()
}

func isPacket(m derp.ReceivedMessage, src key.NodePublic, data []byte) bool {
	pkt, ok := m.(derp.ReceivedPacket)
	return ok && pkt.Source == src && sameBytes(pkt.Data, data) == nil
}

// eventually repeats a question, which has its own bounded wait, until the answer is yes.
func (r *run) eventually(step string, ask func() bool) {
	r.at("%s", step)
	for deadline := time.Now().Add(stepLimit); time.Now().Before(deadline); {
		if ask() {
			return
		}
	}
	r.fatalf("never happened")
}
