package main

import (
	"strings"
	"testing"
	"time"
)

func TestScheduleLetsAllPeersSendEquallyOften(t *testing.T) {
	const n, peers, dests = 700, 7, 3
	s := newSchedule(n, peers, dests, 1)
	sent, streams := map[uint32]int{}, map[uint32]slot{}
	for k, x := range s.slots {
		sent[x.from]++
		if away := (x.to + peers - x.from) % peers; away < 1 || away > dests {
			t.Errorf("packet %d goes from %d to %d", k, x.from, x.to)
		}
		if old, known := streams[x.stream]; known && (old.from != x.from || old.to != x.to) {
			t.Errorf("stream %d is of %v and %v", x.stream, old, x)
		}
		streams[x.stream] = x
	}
	for from, n := range sent {
		if n != 100 {
			t.Errorf("peer %d sends %d packets", from, n)
		}
	}
	if s.streams != len(streams) || s.streams != peers*dests {
		t.Errorf("%d streams, %d seen", s.streams, len(streams))
	}
}

func TestCrowdTellsWhatIsWrong(t *testing.T) {
	tr, keys := newTestTraffic(100)
	c := &crowd{size: 100, keys: tr.keys, fills: tr.fills}
	slots := []slot{{0, 1, 0}, {0, 1, 0}, {1, 0, 1}, {0, 1, 0}}
	x := &course{
		schedule: &schedule{slots: slots, streams: 2},
		base:     1000,
		next:     make([]uint64, 2),
		latency:  make([]int64, len(slots)),
	}
	body := func(k int, seq uint64) []byte {
		s := slots[k]
		b := fillFrame(nil, keys[s.to].AppendTo(nil), s, seq, stamp(), c.fills[s.from])[5:]
		copy(b, c.keys[s.from])
		return b
	}
	changed := func(at int) []byte {
		b := body(3, 1003)
		b[at] ^= 1
		return b
	}
	for _, good := range [][]byte{body(0, 999), body(1, 1001)} { // of an earlier course; after a gap
		if err := c.check(x, 1, good, stamp()); err != nil {
			t.Error(err)
		}
	}
	if x.received() != 1 || x.latency[1] == 0 || x.latency[0] != 0 {
		t.Errorf("%d received, latencies %v", x.received(), x.latency)
	}
	for want, bad := range map[string][]byte{
		"twice or out of order": body(0, 1000),
		"number 4 of 4":         body(3, 1004),
		"instead of 0":          body(2, 1002),
		"under another's key":   changed(0),
		"from sender 1":         changed(keyLen + 3),
		"damaged":               changed(keyLen + 99),
		"of 99 bytes":           body(3, 1003)[:keyLen+99],
	} {
		if err := c.check(x, 1, bad, stamp()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ...%s", err, want)
		}
	}
}

func TestSleepUntilIsNotEarly(t *testing.T) {
	due := stamp() + int64(300*time.Microsecond)
	if sleepUntil(due); stamp() < due {
		t.Error("it woke too early")
	}
}
