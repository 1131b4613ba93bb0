package main

import (
	"bytes"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("sizes", "packets of chosen and random sizes, each checked, over every pair of transports", sizes)
	register("everysize", "one stream with a packet of every size from 0 to 65536", everySize)
	register("wslimit", "websocket messages above 32 KiB: refused by derper, accepted by pyderp", wsLimit)
}

// edgeSizes lie at the borders that the protocol and the buffers of both relays have: disco's 62 bytes,
// 37 bytes of frame head, write buffers of 2 and 4 KiB, websocket messages of 32 KiB, the packet limit.
var edgeSizes = []int{0, 1, 31, 32, 37, 61, 62, 63, 1200, 2011, 2012, 4059, 4060, 4096, 16384,
	32731, 32732, 32767, 32768, 32769, 36827, 36828, 36829, 65499, 65500, 65535, 65536}

const (
	// goWSSend is the largest packet that Go's client can push through a relay which reads at most 32768
	// bytes in a message: the first 4096 bytes of its frame go as a message of their own.
	goWSSend = 4096 - 37 + 32768
	// goWSRecv is a size that Go's client can read from derper, whatever derper's buffer happens to hold.
	goWSRecv = 32768 - 37
)

func sizes(r *run) {
	list := slices.Clone(edgeSizes)
	for range 100 {
		list = append(list, r.rng.IntN(derp.MaxPacketSize+1))
	}
	a, b := r.peer("a", peerOpts{}), r.peer("b", peerOpts{})
	r.sizesBetween(list, a, b)
	if r.cfg.mode == modeWS {
		// The same relay, seen from a client that does not use a websocket.
		plain := r.cfg.plain()
		r.withConfig(plain, func() {
			c := r.peer("c", peerOpts{})
			r.sizesBetween(list, a, c)
			r.sizesBetween(list, c, a)
		})
	}
	r.fact("sizes", len(list))
	for _, p := range []*peer{a, b} {
		if p.rec == nil || r.cfg.mode != modeWS {
			continue
		}
		out, outMax := p.rec.out.messages()
		in, inMax := p.rec.in.messages()
		r.fact("ws_"+p.name, map[string]int{"out": out, "out_max": outMax, "in": in, "in_max": inMax})
		r.check(!r.cfg.wsFull || inMax <= 32768, "%s: the relay sent a message of %d bytes", p.name, inMax)
	}
}

// biggestBetween is the largest packet that the transports of two peers let through.
func (r *run) biggestBetween(from, to *peer) int {
	switch {
	case r.cfg.wsFull:
		return derp.MaxPacketSize
	case to.isWS():
		return goWSRecv
	case from.isWS():
		return goWSSend
	}
	return derp.MaxPacketSize
}

// sizesBetween sends each size one at a time: what is checked here is the content, not the queues.
func (r *run) sizesBetween(list []int, from, to *peer) {
	most := r.biggestBetween(from, to)
	for _, n := range list {
		if n > most {
			continue
		}
		r.at("%d bytes from %s to %s", n, from.name, to.name)
		data := r.bytes(n)
		from.send(to.pub, data)
		to.wantPacket(from.pub, data)
	}
	to.quiet()
}

func (p *peer) isWS() bool { return p.rec != nil && p.rec.transport() == "websocket" }

func everySize(r *run) {
	// Any slice of a block of noise has its own content, and the comparison costs no generator.
	noise := r.bytes(2 * (derp.MaxPacketSize + 1))
	slice := func(n int) []byte {
		at := n * 31 % derp.MaxPacketSize
		return noise[at : at+n]
	}
	// Fewer in flight than the 32 that a relay queues: beyond that it may drop.
	const window = 24
	free := make(chan struct{}, window)
	// And fewer bytes than the 256 KiB that pyderp queues for one destination: a large packet
	// takes several places.
	places := func(n int) int { return 1 + n/(16<<10) }
	failed := make(chan error, 1)
	var got, total atomic.Int64
	finished := make(chan struct{})
	a := r.peer("a", peerOpts{})
	most := r.biggestBetween(a, a)
	var todo []int
	for n := 0; n <= most; n++ {
		// Around each buffer border every size counts; between them a coarser step will do.
		if n < 4200 || n%2048 < 48 || n%2048 > 1960 || n%r.cfg.stride == 0 {
			todo = append(todo, n)
		}
	}
	b := r.peer("b", peerOpts{onPacket: func(_ key.NodePublic, data []byte) {
		i := int(got.Add(1)) - 1
		total.Add(int64(len(data)))
		if i < len(todo) {
			if want := slice(todo[i]); !bytes.Equal(data, want) {
				select {
				case failed <- fmt.Errorf("packet %d: %w", i, sameBytes(data, want)):
				default:
				}
			}
		}
		if i == len(todo)-1 {
			close(finished)
		}
		for range places(len(data)) {
			<-free
		}
	}})
	start := time.Now()
	timer := time.NewTimer(stepLimit)
	for _, n := range todo {
		timer.Reset(stepLimit)
		for range places(n) {
			select {
			case free <- struct{}{}:
			case err := <-failed:
				r.must(err, "receiver")
			case <-timer.C:
				r.check(!b.isClosed(), "the receiver was closed after %d packets: %v", got.Load(), b.err)
				r.fatalf("%d of %d packets arrived, then no more for %v", got.Load(), len(todo), stepLimit)
			}
		}
		a.send(b.pub, slice(n))
	}
	select {
	case <-finished:
	case <-time.After(stepLimit):
		r.fatalf("%d of %d packets arrived", got.Load(), len(todo))
	}
	select {
	case err := <-failed:
		r.must(err, "receiver")
	default:
	}
	seconds := time.Since(start).Seconds()
	r.fact("packets", len(todo))
	r.fact("bytes", total.Load())
	r.fact("mbyte_per_second", int(float64(total.Load())/1e6/seconds))
	b.quiet()
}

func wsLimit(r *run) {
	r.check(r.cfg.mode == modeWS, "wslimit is about websockets")
	// Documented difference: derper's websocket library has a limit of 32768 bytes a message, so that legal
	// packets break the connection. (One byte above it the packet still arrives, and then the end.)
	limited := r.cfg.derper()
	biggest := 0
	for _, n := range []int{goWSSend, goWSSend + 1, goWSSend + 2, derp.MaxPacketSize} {
		r.at("Go's client sends %d bytes", n)
		a := r.peer("a", peerOpts{})
		data := r.bytes(n)
		r.withConfig(r.cfg.plain(), func() {
			b := r.peer("b", peerOpts{})
			a.send(b.pub, data)
			if !limited || n <= goWSSend+1 {
				b.wantPacket(a.pub, data)
			}
			if limited && n > goWSSend {
				a.wantClosed()
			} else {
				a.quiet()
			}
		})
		_, most := a.rec.out.messages()
		biggest = max(biggest, most)
	}
	r.fact("biggest_message_sent", biggest)
	r.at("one message that holds a whole frame of 65573 bytes")
	low := r.peer("low", peerOpts{low: true})
	data := r.bytes(derp.MaxPacketSize)
	whole := frame(derp.FrameSendPacket, low.pub.AppendTo(nil), data)
	_, err := low.st.nc.Write(whole)
	r.must(err, "write")
	if limited {
		low.wantClosed()
		return
	}
	low.wantPacket(low.pub, data)
	_, most := low.rec.in.messages()
	r.fact("biggest_message_received", most)
	r.check(most <= 32768, "the relay sent a message of %d bytes, which Go's client cannot read in general", most)
}

// plain is the configuration for a client of the same relay that does not use a websocket.
func (c *config) plain() *config {
	d := *c
	d.mode = d.url.Scheme
	d.low = true // derphttp's choice of transport is one for the whole process
	return &d
}

// withConfig lets f make peers of another configuration.
func (r *run) withConfig(c *config, f func()) {
	before := r.cfg
	r.cfg = c
	defer func() { r.cfg = before }()
	f()
}
