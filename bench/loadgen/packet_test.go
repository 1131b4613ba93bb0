package main

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"tailscale.com/types/key"
)

// newTestTraffic makes two pairs without connections.
func newTestTraffic(size int) (*traffic, []key.NodePublic) {
	t, keys := &traffic{}, []key.NodePublic{key.NewNode().Public(), key.NewNode().Public()}
	for i := range keys {
		t.pairs = append(t.pairs, &pair{index: i, expect: make([]uint64, 2)})
		t.keys = append(t.keys, keys[i].AppendTo(nil))
		t.fills = append(t.fills, filler(i, size))
	}
	return t, keys
}

// relayed is the body of the frame that a relay makes of sender's packet.
func relayed(t *traffic, keys []key.NodePublic, sender, receiver int, seq uint64) []byte {
	frame := appendFrame(nil, keys[receiver], sender, receiver, t.fills[sender])
	binary.BigEndian.PutUint64(frame[frameSeqOff:], seq)
	body := frame[5:]
	copy(body, t.keys[sender])
	return body
}

func TestCheckTellsWhatIsWrong(t *testing.T) {
	tr, keys := newTestTraffic(100)
	to := tr.pairs[1]
	for _, c := range []struct{ seq, gap uint64 }{{0, 0}, {1, 0}, {5, 3}} {
		from, gap, err := tr.check(to, relayed(tr, keys, 0, 1, c.seq))
		if err != nil || from != tr.pairs[0] || gap != c.gap {
			t.Fatalf("sequence number %d: from %v, gap %d, %v", c.seq, from, gap, err)
		}
	}
	change := func(f func(b []byte)) []byte {
		b := relayed(tr, keys, 0, 1, 6)
		f(b)
		return b
	}
	for want, body := range map[string][]byte{
		"twice or out of order": relayed(tr, keys, 0, 1, 5),
		"instead of 0":          relayed(tr, keys, 0, 0, 6),
		"under another's key":   change(func(b []byte) { copy(b, tr.keys[1]) }),
		"from sender 7":         change(func(b []byte) { b[keyLen+3] = 7 }),
		"damaged: 100 bytes":    change(func(b []byte) { b[len(b)-1] ^= 1 }),
		"damaged: 99 bytes":     relayed(tr, keys, 0, 1, 6)[:keyLen+99],
		"short: 23 bytes":       relayed(tr, keys, 0, 1, 6)[:keyLen+23],
	} {
		if _, _, err := tr.check(to, body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ...%s", err, want)
		}
	}
	if _, _, err := tr.check(to, relayed(tr, keys, 0, 1, 6)); err != nil {
		t.Errorf("a good packet after bad ones: %v", err)
	}
}

func TestProcessCountsOwnWork(t *testing.T) {
	p, err := watchProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	before, own := p.cpu(), ownCPU()
	for x := 0; ownCPU()-own < 0.1; x++ {
	}
	spent := p.cpu() - before
	if spent < 90*time.Millisecond || spent > 200*time.Millisecond {
		t.Errorf("100 ms of work were counted as %v by %s", spent, p.method)
	}
	if kib := p.pss(); kib < 100 {
		t.Errorf("%v KiB of memory", kib)
	}
}
