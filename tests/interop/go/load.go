package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("many", "a hundred clients, every one to every other, contents checked", many)
	register("slowreader", "a client that stops reading delays no other, and is closed", slowReader)
	register("bursts", "bursts that fit the queue arrive complete and in order", bursts)
}

// parallel runs f for 0 to n-1 with a few workers and returns the first error.
func parallel(n, workers int, f func(i int) error) error {
	var next atomic.Int64
	errs := make(chan error, workers)
	for range workers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					errs <- nil
					return
				}
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var first error
	for range workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// mark packs a packet with its sender and destination; the rest follows from these.
func mark(from, to int) []byte {
	rng := rand.New(rand.NewPCG(uint64(from), uint64(to)))
	b := make([]byte, 8+rng.IntN(2000))
	binary.BigEndian.PutUint32(b, uint32(from))
	binary.BigEndian.PutUint32(b[4:], uint32(to))
	for i := 8; i < len(b); i++ {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func many(r *run) {
	n := r.cfg.clients
	peers := make([]*peer, n)
	index := map[key.NodePublic]int{}
	keys := make([]key.NodePrivate, n)
	for i := range keys {
		keys[i] = key.NewNode()
		index[keys[i].Public()] = i
	}
	// At most this many packets are on the way to one client: more than 32 could be dropped.
	const inFlight = 16
	free := make([]chan struct{}, n)
	got := make([][]bool, n)
	problems := make(chan error, n)
	var left sync.WaitGroup
	left.Add(n * n)
	for i := range n {
		free[i] = make(chan struct{}, inFlight)
		got[i] = make([]bool, n)
	}
	receive := func(to int) func(key.NodePublic, []byte) {
		return func(src key.NodePublic, data []byte) {
			from, known := index[src]
			switch {
			case !known:
				problems <- fmt.Errorf("client %d: packet from an unknown key", to)
			case got[to][from]:
				problems <- fmt.Errorf("client %d: second packet from %d", to, from)
			default:
				got[to][from] = true
				if err := sameBytes(data, mark(from, to)); err != nil {
					problems <- fmt.Errorf("client %d: packet from %d: %w", to, from, err)
				}
			}
			<-free[to]
			left.Done()
		}
	}
	r.at("connect")
	start := time.Now()
	r.must(parallel(n, 4, func(i int) (err error) {
		peers[i], err = r.connect(fmt.Sprint(i), peerOpts{key: keys[i], onPacket: receive(i)})
		return err
	}), "clients")
	r.fact("connect_seconds", time.Since(start).Seconds())
	r.at("all to all")
	start = time.Now()
	r.must(parallel(n, n, func(from int) error {
		for k := range n {
			to := (from + k) % n
			select {
			case free[to] <- struct{}{}:
			case <-time.After(stepLimit):
				return fmt.Errorf("client %d takes no more packets", to)
			}
			if err := peers[from].Send(peers[to].pub, mark(from, to)); err != nil {
				return err
			}
		}
		return nil
	}), "senders")
	done := make(chan struct{})
	go func() { left.Wait(); close(done) }()
	select {
	case <-done:
	case err := <-problems:
		r.must(err, "content")
	case <-time.After(stepLimit):
		r.fatalf("packets are missing")
	}
	select {
	case err := <-problems:
		r.must(err, "content")
	default:
	}
	r.fact("packets", n*n)
	r.fact("traffic_seconds", time.Since(start).Seconds())
}

func bursts(r *run) {
	a, b := r.peer("a", peerOpts{low: true}), r.peer("b", peerOpts{})
	for round := range 20 {
		r.at("round %d", round)
		var all []byte
		var want [][]byte
		for range 32 {
			data := r.bytes(1 + r.rng.IntN(1400))
			want = append(want, data)
			all = append(all, frame(derp.FrameSendPacket, b.pub.AppendTo(nil), data)...)
		}
		a.sendRaw(all)
		for _, data := range want {
			b.wantPacket(a.pub, data)
		}
	}
	b.quiet()
	a.quiet()
}

// slowReader stops one client's reading by never reading its socket.
func slowReader(r *run) {
	a, good := r.peer("a", peerOpts{}), r.peer("good", peerOpts{})
	slow, priv := r.stream(), key.NewNode()
	if tcp, ok := slow.rec.Conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(4 << 10) // the sooner it is full, the shorter the test
	}
	_, err := slow.login(priv, ordinaryInfo)
	r.must(err, "login")
	// The relay sends PeerGone only to clients that got packets from the one that left.
	r.must(slow.write(frame(derp.FrameSendPacket, a.pub.AppendTo(nil), []byte("hello"))), "hello")
	a.wantPacket(priv.Public(), []byte("hello"))

	big := r.bytes(16 << 10)
	if r.cfg.mode == modeWS {
		big = big[:8<<10]
	}
	start := time.Now()
	var worst time.Duration
	sent := 0
	for {
		r.check(time.Since(start) < 25*time.Second, "the stalled client is still connected after %d packets", sent)
		small := r.bytes(100)
		for range 4 {
			a.send(priv.Public(), big)
			sent++
		}
		before := time.Now()
		a.send(good.pub, small)
		good.wantPacket(a.pub, small)
		worst = max(worst, time.Since(before))
		if m, ok := a.poll(2 * time.Millisecond); ok {
			r.check(m == derp.PeerGoneMessage{Peer: priv.Public(), Reason: derp.PeerGoneReasonDisconnected}, "a: got %s", describe(m))
			break
		}
	}
	r.fact("closed_after_seconds", time.Since(start).Seconds())
	r.fact("packets_to_stalled", sent)
	r.fact("worst_delay_ms", worst.Milliseconds())
	r.check(worst < time.Second, "a packet to the good client took %v", worst)
	r.at("afterwards")
	a.quiet()
	good.quiet()
}
