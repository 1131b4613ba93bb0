package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("watchers", "presence: each client with address and flags, newcomers, late watchers, departures", watchers)
	register("watchloop", "derphttp's RunWatchConnectionLoop: adds, removes, detects itself", watchLoop)
	register("forward", "ForwardPacket delivers with the foreign source; the forwarder gets PeerGone for unknown keys", forward)
	register("closepeer", "ClosePeer ends every connection of a key", closePeer)
	register("meshrights", "without the right mesh key the mesh frames end the connection", meshRights)
}

func (r *run) watcher(name string) *peer {
	return r.peer(name, peerOpts{mesh: r.cfg.mesh, watch: true})
}

// wantPresent waits for the keys to be reported, in any order, and skips those of others: the relay may
// still be rid of connections from a test before.
func (p *peer) wantPresent(want map[key.NodePublic]derp.PeerPresentFlags, addrs map[key.NodePublic]netip.AddrPort) {
	missing := map[key.NodePublic]bool{}
	for k := range want {
		missing[k] = true
	}
	for len(missing) > 0 {
		m := p.next()
		present, ok := m.(derp.PeerPresentMessage)
		if gone, isGone := m.(derp.PeerGoneMessage); isGone {
			_, ours := want[gone.Peer]
			p.r.check(!ours, "%s: got %s", p.name, describe(m))
			continue
		}
		p.r.check(ok, "%s: got %s, want PeerPresent", p.name, describe(m))
		flags, ours := want[present.Key]
		if !ours {
			continue
		}
		p.r.check(missing[present.Key], "%s: got one connection twice", p.name)
		p.r.check(present.Flags == flags, "%s: flags %d, want %d", p.name, present.Flags, flags)
		p.r.check(present.IPPort == addrs[present.Key], "%s: address %v, want %v", p.name, present.IPPort, addrs[present.Key])
		delete(missing, present.Key)
	}
}

// wantLeft waits for one key's departure; other keys are not ours to judge.
func (p *peer) wantLeft(who key.NodePublic) {
	for {
		m := p.next()
		gone, ok := m.(derp.PeerGoneMessage)
		if ok && gone.Peer == who {
			p.r.check(gone.Reason == derp.PeerGoneReasonDisconnected, "%s: reason %d", p.name, gone.Reason)
			return
		}
		present, isPresent := m.(derp.PeerPresentMessage)
		p.r.check(ok || isPresent && present.Key != who, "%s: got %s", p.name, describe(m))
	}
}

func watchers(r *run) {
	r.needMesh()
	const regular, mesh, prober, notIdeal = derp.PeerPresentIsRegular, derp.PeerPresentIsMeshPeer,
		derp.PeerPresentIsProber, derp.PeerPresentNotIdeal
	flags := map[key.NodePublic]derp.PeerPresentFlags{}
	addrs := map[key.NodePublic]netip.AddrPort{}
	note := func(p *peer, f derp.PeerPresentFlags) map[key.NodePublic]derp.PeerPresentFlags {
		flags[p.pub], addrs[p.pub] = f, p.addr()
		return map[key.NodePublic]derp.PeerPresentFlags{p.pub: f}
	}
	r.at("a watcher sees itself")
	one := r.watcher("one")
	one.wantPresent(note(one, mesh), addrs)

	r.at("newcomers")
	type newcomer struct {
		opts  peerOpts
		flags derp.PeerPresentFlags
	}
	list := []newcomer{
		{peerOpts{}, regular},
		{peerOpts{prober: true}, prober},
		{peerOpts{mesh: r.cfg.mesh}, mesh},
		{peerOpts{mesh: r.cfg.mesh, prober: true}, mesh | prober},
	}
	if r.cfg.mode != modeWS { // a websocket's request has no Ideal-Node header that counts
		list = append(list, newcomer{peerOpts{low: true, notIdeal: true}, notIdeal},
			newcomer{peerOpts{low: true, notIdeal: true, prober: true}, notIdeal | prober})
	}
	var peers []*peer
	for i, n := range list {
		r.at("newcomer %d", i)
		p := r.peer(fmt.Sprintf("newcomer %d", i), n.opts)
		peers = append(peers, p)
		one.wantPresent(note(p, n.flags), addrs)
	}
	r.at("a late watcher gets all of them, and itself")
	two := r.watcher("two")
	self := note(two, mesh)
	two.wantPresent(flags, addrs)
	one.wantPresent(self, addrs)

	r.at("a second connection of a key is sent as well")
	again := r.peer("again", peerOpts{key: peers[0].priv})
	addrs[again.pub] = again.addr()
	for _, w := range []*peer{one, two} {
		w.wantPresent(map[key.NodePublic]derp.PeerPresentFlags{again.pub: regular}, addrs)
	}
	again.close()
	r.at("departures")
	for _, p := range peers[1:] {
		p.close()
		one.wantLeft(p.pub)
		two.wantLeft(p.pub)
	}
	r.at("one of two connections left before, without a message")
	for _, w := range []*peer{one, two} {
		for _, m := range w.barrier() {
			gone, ok := m.(derp.PeerGoneMessage)
			r.check(!ok || gone.Peer != again.pub, "%s: got %s", w.name, describe(m))
		}
	}
	peers[0].close()
	one.wantLeft(again.pub)
	two.wantLeft(again.pub)
	r.at("a watcher leaves")
	one.close()
	two.wantLeft(one.pub)

	r.at("a second WatchConns repeats the list")
	three := r.peer("three", peerOpts{mesh: r.cfg.mesh, low: true})
	note(three, mesh)
	for range 2 {
		three.sendRaw(frame(derp.FrameWatchConns))
		three.wantPresent(map[key.NodePublic]derp.PeerPresentFlags{two.pub: mesh, three.pub: mesh}, addrs)
	}
}

func watchLoop(r *run) {
	r.needMesh()
	r.check(r.cfg.mode != modeWS, "derphttp does not subscribe on a websocket")
	r.at("own server key")
	probe := r.peer("probe", peerOpts{})
	self := r.peer("self", peerOpts{mesh: r.cfg.mesh, watch: true})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		self.hi.RunWatchConnectionLoop(r.ctx, probe.hi.ServerPublicKey(), nil,
			func(derp.PeerPresentMessage) {}, func(derp.PeerGoneMessage) {}, nil)
	}()
	select {
	case <-ended:
	case <-time.After(stepLimit):
		r.fatalf("the loop does not notice that it watches itself")
	}

	r.at("adds and removes")
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	adds, removes := make(chan key.NodePublic, queueSize), make(chan key.NodePublic, queueSize)
	var rec *recorder
	w, err := r.unstarted(peerOpts{key: key.NewNode(), mesh: r.cfg.mesh, watch: true}, &rec)
	r.must(err, "watcher")
	r.onClose(func() { w.Close() })
	go w.RunWatchConnectionLoop(ctx, key.NodePublic{}, nil,
		func(m derp.PeerPresentMessage) { adds <- m.Key }, func(m derp.PeerGoneMessage) { removes <- m.Peer }, nil)
	wait := func(ch chan key.NodePublic, want key.NodePublic, what string) {
		timeout := time.After(stepLimit)
		for {
			select {
			case k := <-ch:
				if k == want {
					return
				}
			case <-timeout:
				r.fatalf("no %s", what)
			}
		}
	}
	wait(adds, w.SelfPublicKey(), "add of the watcher itself")
	p := r.peer("p", peerOpts{})
	wait(adds, p.pub, "add of a newcomer")
	p.close()
	wait(removes, p.pub, "remove of a client that left")
}

func forward(r *run) {
	r.needMesh()
	m, a := r.peer("mesh", peerOpts{mesh: r.cfg.mesh}), r.peer("a", peerOpts{})
	far, nobody := key.NewNode().Public(), key.NewNode().Public()
	for _, n := range []int{0, 1, 62, 1200, 30000} {
		r.at("%d bytes", n)
		data := r.bytes(n)
		r.must(m.ForwardPacket(far, a.pub, lend(data)), "forward")
		a.wantPacket(far, data)
	}
	disco := r.disco(80)
	r.must(m.ForwardPacket(far, a.pub, lend(disco)), "forward")
	a.wantPacket(far, disco)
	m.quiet()

	r.at("unknown key")
	r.must(m.ForwardPacket(far, nobody, lend(r.bytes(100))), "forward")
	m.quiet()
	r.must(m.ForwardPacket(far, nobody, lend(disco)), "forward")
	m.wantGone(nobody, derp.PeerGoneReasonNotHere)
	a.quiet()

	r.at("from an ordinary client")
	bad := r.peer("ordinary", peerOpts{})
	r.must(bad.ForwardPacket(far, a.pub, lend([]byte("x"))), "forward")
	bad.wantClosed()
	a.quiet()
}

func closePeer(r *run) {
	r.needMesh()
	k := key.NewNode()
	m, a := r.peer("mesh", peerOpts{mesh: r.cfg.mesh}), r.peer("a", peerOpts{})
	first, second := r.peer("first", peerOpts{key: k}), r.peer("second", peerOpts{key: k})
	r.at("unknown key")
	r.must(m.ClosePeer(key.NewNode().Public()), "ClosePeer")
	m.quiet()
	r.at("both connections of a key")
	r.must(m.ClosePeer(k.Public()), "ClosePeer")
	first.wantClosed()
	second.wantClosed()
	r.at("no other client is affected")
	m.quiet()
	a.quiet()
	r.untilUnknown(a, k.Public())
	r.at("the key may come back")
	first = r.peer("first again", peerOpts{key: k})
	data := r.bytes(20)
	a.send(k.Public(), data)
	first.wantPacket(a.pub, data)
	r.at("itself")
	r.must(m.ClosePeer(m.pub), "ClosePeer")
	m.wantClosed()
}

func meshRights(r *run) {
	r.needMesh()
	wrongKey, err := key.ParseDERPMesh(strings.Repeat("fe", 32))
	r.must(err, "mesh key")
	target := r.peer("target", peerOpts{})
	watcher := r.watcher("watcher")
	k := target.pub.AppendTo(nil)
	for _, who := range []struct {
		name string
		key  key.DERPMesh
	}{{"no mesh key", key.DERPMesh{}}, {"a wrong mesh key", wrongKey}} {
		for _, what := range []struct {
			name  string
			bytes []byte
		}{
			{"ForwardPacket", frame(derp.FrameForwardPacket, k, k, []byte("x"))},
			{"WatchConns", frame(derp.FrameWatchConns)},
			{"ClosePeer", frame(derp.FrameClosePeer, k)},
		} {
			r.at("%s with %s", what.name, who.name)
			p := r.peer("p", peerOpts{low: true, mesh: who.key})
			p.send(p.pub, []byte("ordinary"))
			p.wantPacket(p.pub, []byte("ordinary"))
			watcher.wantPresent(map[key.NodePublic]derp.PeerPresentFlags{p.pub: derp.PeerPresentIsRegular},
				map[key.NodePublic]netip.AddrPort{p.pub: p.addr()})
			p.sendRaw(what.bytes)
			p.wantClosed()
		}
	}
	r.at("the target is untouched")
	target.quiet()
}
