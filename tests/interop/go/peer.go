package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/types/key"
)

// driver is what upstream's two clients have in common.
type driver interface {
	Send(dst key.NodePublic, b []byte) error
	ForwardPacket(src, dst key.NodePublic, b payload) error
	ClosePeer(target key.NodePublic) error
	SendPing(data [8]byte) error
	Recv() (derp.ReceivedMessage, error)
}

// peer is a logged-in client with a running receive loop.
//
// By default it is a derphttp.Client, the one that Tailscale nodes use. With peerOpts.low it is a
// derp.Client on a connection that the test upgraded, so that raw frames can be mixed in.
type peer struct {
	driver
	r    *run
	name string
	priv key.NodePrivate
	pub  key.NodePublic
	hi   *derphttp.Client // nil for a low peer
	st   *stream          // nil for a high peer
	rec  *recorder        // nil in region mode

	msgs chan derp.ReceivedMessage // closed after the last message
	err  error                     // why; set before msgs is closed
}

type peerOpts struct {
	key      key.NodePrivate // zero: a fresh one
	mesh     key.DERPMesh
	prober   bool
	watch    bool // subscribe to presence; needs mesh
	notIdeal bool // low peers on HTTP only
	low      bool
	onPacket func(src key.NodePublic, data []byte) // runs in the receive loop, instead of queueing
}

// queueSize is more than any scenario leaves unread, so that a receive loop never blocks.
const queueSize = 1 << 14

var staticNetmon = netmon.NewStatic()

// connect makes a peer and waits for ServerInfo, which must be the first message: from then on the relay
// knows the key.
func (r *run) connect(name string, o peerOpts) (*peer, error) {
	if o.key.IsZero() {
		o.key = key.NewNode()
	}
	p := &peer{r: r, name: name, priv: o.key, pub: o.key.Public(), msgs: make(chan derp.ReceivedMessage, queueSize)}
	ctx, cancel := context.WithTimeout(r.ctx, stepLimit)
	defer cancel()
	// derphttp does not subscribe on a websocket, so such a watcher must be a low peer.
	low := o.low || r.cfg.low || o.watch && r.cfg.mode == modeWS
	var err error
	if low {
		err = p.dialLow(ctx, o)
	} else {
		err = p.dialHigh(ctx, o)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: connect: %w", name, err)
	}
	r.onClose(p.close)
	go p.receive(o.onPacket)
	select {
	case m, open := <-p.msgs:
		if !open {
			return nil, fmt.Errorf("%s: closed during login: %w", name, p.err)
		}
		if _, ok := m.(derp.ServerInfoMessage); !ok {
			return nil, fmt.Errorf("%s: first message is %T, want ServerInfo", name, m)
		}
	case <-time.After(stepLimit):
		return nil, fmt.Errorf("%s: no ServerInfo", name)
	}
	return p, p.checkTransport()
}

// peer is connect for a scenario's own goroutine.
func (r *run) peer(name string, o peerOpts) *peer {
	p, err := r.connect(name, o)
	r.must(err, "peer")
	return p
}

func (p *peer) dialHigh(ctx context.Context, o peerOpts) (err error) {
	var taken *recorder
	if p.hi, err = p.r.unstarted(o, &taken); err != nil {
		return err
	}
	p.driver = p.hi
	err = p.hi.Connect(withSlot(ctx, &taken))
	p.rec = taken
	if err == nil && taken == nil && p.r.cfg.mode == modeWS {
		err = errNotRecorded
	}
	return err
}

// unstarted makes derphttp's client without connecting it; what it dials is recorded in rec.
func (r *run) unstarted(o peerOpts, rec **recorder) (c *derphttp.Client, err error) {
	cfg := r.cfg
	if cfg.viaRegion() {
		c = derphttp.NewRegionClient(o.key, log.Printf, staticNetmon, cfg.region)
	} else {
		if c, err = derphttp.NewClient(o.key, cfg.url.String(), log.Printf, staticNetmon); err != nil {
			return nil, err
		}
		c.SetURLDialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, err := dialTimeout().DialContext(ctx, "tcp", cfg.hostPort())
			if err != nil {
				return nil, err
			}
			*rec = newRecorder(nc, false)
			return *rec, nil
		})
	}
	if cfg.tls() {
		c.TLSConfig = cfg.clientTLSConfig()
	}
	c.MeshKey, c.IsProber, c.WatchConnectionChanges = o.mesh, o.prober, o.watch
	c.SetCanAckPings(true)
	return c, nil
}

func (p *peer) dialLow(ctx context.Context, o peerOpts) (err error) {
	var header string
	if o.notIdeal {
		header = derp.IdealNodeHeader + ": other\r\n"
	}
	if p.st, err = p.r.cfg.dialStream(ctx, header); err != nil {
		return err
	}
	p.rec = p.st.rec
	brw := bufio.NewReadWriter(p.st.br, bufio.NewWriter(p.st.nc))
	c, err := derp.NewClient(o.key, p.st.nc, brw, log.Printf,
		derp.MeshKey(o.mesh), derp.IsProber(o.prober), derp.CanAckPings(true))
	if err != nil {
		p.st.nc.Close()
		return err
	}
	p.driver = c
	if o.watch {
		return c.WatchConnectionChanges()
	}
	return nil
}

// checkTransport compares what was spoken with what should have been, and records the facts once.
func (p *peer) checkTransport() error {
	r, cfg := p.r, p.r.cfg
	want := map[string]string{modeHTTP: "derp", modeHTTPS: "tls", modeWS: "websocket"}[cfg.mode]
	if p.rec != nil {
		got := p.rec.transport()
		r.fact1("transport", got)
		if got != want {
			return fmt.Errorf("%s: spoke %q, want %q (is gopeer built with -tags ts_debug_websockets?)", p.name, got, want)
		}
	}
	r.fact1("websocket", want == "websocket")
	if p.hi == nil {
		return nil
	}
	r.fact1("server_key", p.hi.ServerPublicKey().UntypedHexString())
	cs, isTLS := p.hi.TLSConnectionState()
	if !isTLS {
		return nil
	}
	r.fact1("tls_version", tls.VersionName(cs.Version))
	r.fact1("sni", cs.ServerName)
	meta := false
	for _, cert := range cs.PeerCertificates {
		meta = meta || strings.HasPrefix(cert.Subject.CommonName, "derpkey")
	}
	fast := meta && cs.Version >= tls.VersionTLS13
	r.fact1("meta_cert", meta)
	r.fact1("fast_start", fast)
	if p.rec == nil {
		return nil
	}
	sizes := p.rec.tlsRecords()
	r.fact1("first_records", sizes[:min(3, len(sizes))])
	// With a fast start the request and ClientInfo are flushed together, and only TLS 1.3 also counts
	// the Finished message. Without one the request goes alone: it is far smaller.
	if fast && (len(sizes) < 2 || sizes[1] < fastStartRecord) || !fast && len(sizes) > 0 && sizes[0] >= fastStartRecord {
		return fmt.Errorf("%s: fast start %v does not fit the records sent, %v", p.name, fast, sizes)
	}
	return nil
}

// fastStartRecord lies between the size of a bare upgrade request and of one with ClientInfo behind it.
const fastStartRecord = 220

// receive runs until the first error: a further Recv on a derphttp client would reconnect.
func (p *peer) receive(onPacket func(key.NodePublic, []byte)) {
	defer close(p.msgs)
	for {
		m, err := p.Recv()
		if err != nil {
			p.err = err
			return
		}
		if _, ok := m.(derp.HealthMessage); ok && p.r.cfg.kind == kindPyderp {
			continue // derper sends none; pyderp reports duplicates that take each other's packets
		}
		if pkt, ok := m.(derp.ReceivedPacket); ok {
			if onPacket != nil {
				onPacket(pkt.Source, pkt.Data)
				continue
			}
			pkt.Data = bytes.Clone(pkt.Data) // it aliases the client's buffer
			m = pkt
		}
		p.msgs <- m
	}
}

func (p *peer) close() {
	if p.hi != nil {
		p.hi.Close()
	} else {
		p.st.nc.Close()
	}
}

// addr is the address that the relay sees this peer at.
func (p *peer) addr() netip.AddrPort {
	if p.rec != nil {
		return netip.MustParseAddrPort(p.rec.LocalAddr().String())
	}
	addr, err := p.hi.LocalAddr()
	p.r.must(err, "%s: local address", p.name)
	return addr
}

// poll waits at most limit for a message; ok is false if there was none or the connection is closed.
func (p *peer) poll(limit time.Duration) (m derp.ReceivedMessage, ok bool) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case m, open := <-p.msgs:
			if _, alive := m.(derp.KeepAliveMessage); alive {
				continue
			}
			return m, open
		case <-timer.C:
			return nil, false
		}
	}
}

// next waits for a message.
func (p *peer) next() derp.ReceivedMessage {
	m, ok := p.poll(stepLimit)
	if !ok {
		if p.isClosed() {
			p.r.fatalf("%s: closed instead of a message: %v", p.name, p.err)
		}
		p.r.fatalf("%s: no message within %v", p.name, stepLimit)
	}
	return m
}

// isClosed reports whether the receive loop has ended with nothing left to read.
func (p *peer) isClosed() bool {
	select {
	case m, open := <-p.msgs:
		if open {
			p.r.fatalf("%s: message %T after a wait for none", p.name, m)
		}
		return true
	default:
		return false
	}
}

// wantPacket requires the next message to be this packet.
func (p *peer) wantPacket(src key.NodePublic, data []byte) {
	m := p.next()
	pkt, ok := m.(derp.ReceivedPacket)
	p.r.check(ok, "%s: got %s, want a packet", p.name, describe(m))
	p.r.check(pkt.Source == src, "%s: packet from %v, want %v", p.name, pkt.Source, src)
	p.r.must(sameBytes(pkt.Data, data), "%s: packet", p.name)
}

// wantGone requires the next message to be this PeerGone.
func (p *peer) wantGone(who key.NodePublic, reason derp.PeerGoneReasonType) {
	m := p.next()
	want := derp.PeerGoneMessage{Peer: who, Reason: reason}
	p.r.check(m == want, "%s: got %s, want %s", p.name, describe(m), describe(want))
}

// barrier returns what arrives before the answers to two pings.
//
// One is not enough: the relay may write a pong ahead of packets that it had queued before. But it flushes
// only when it has nothing left to write, so that all of them are out before the second ping arrives.
func (p *peer) barrier() (before []derp.ReceivedMessage) {
	for range 2 {
		var data [8]byte
		copy(data[:], p.r.bytes(8))
		p.r.must(p.SendPing(data), "%s: ping", p.name)
		for {
			m := p.next()
			if m == derp.PongMessage(data) {
				break
			}
			before = append(before, m)
		}
	}
	return before
}

// quiet requires that nothing was on its way to the peer.
func (p *peer) quiet() {
	if got := p.barrier(); len(got) > 0 {
		p.r.fatalf("%s: unexpected %s", p.name, describe(got[0]))
	}
}

// wantClosed requires the relay to hang up, without having sent anything else.
func (p *peer) wantClosed() {
	m, ok := p.poll(stepLimit)
	p.r.check(!ok, "%s: got %s, want the end of the connection", p.name, describe(m))
	p.r.check(p.isClosed(), "%s: still open", p.name)
}

func (p *peer) send(dst key.NodePublic, data []byte) {
	p.r.must(p.Send(dst, data), "%s: send", p.name)
}

// sendRaw writes bytes past the client of a low peer. Errors are for the receive loop to find: the relay may
// hang up while we are still writing.
func (p *peer) sendRaw(b []byte) { _ = p.st.write(b) }

func describe(m derp.ReceivedMessage) string {
	switch m := m.(type) {
	case derp.ReceivedPacket:
		return fmt.Sprintf("packet of %d bytes from %v", len(m.Data), m.Source.ShortString())
	case derp.PeerGoneMessage:
		return fmt.Sprintf("PeerGone(%v, reason %d)", m.Peer.ShortString(), m.Reason)
	case derp.PeerPresentMessage:
		return fmt.Sprintf("PeerPresent(%v, %v, flags %d)", m.Key.ShortString(), m.IPPort, m.Flags)
	}
	return fmt.Sprintf("%T %v", m, m)
}
