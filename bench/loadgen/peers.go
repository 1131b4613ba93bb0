package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/derp"
)

// How late the generator may be before it leaves packets out: a burst that is longer than a
// relay's queue would only show that the generator lacked CPU. Packets left out are counted.
const (
	maxLatePackets = 32
	maxLateTime    = 4 * time.Millisecond
)

// crowd is a set of connections that all send and receive single packets.
type crowd struct {
	conns []*conn
	keys  [][]byte
	fills [][]byte
	size  int
	now   atomic.Pointer[course]
	over  atomic.Bool
}

// course is one schedule that a crowd plays. It needs no lock: every stream and every slot has one
// receiver, and only that receiver writes to it.
type course struct {
	*schedule
	base    uint64   // sequence number of the first packet: older ones are of an earlier course
	next    []uint64 // by stream: the lowest sequence number that may come
	latency []int64  // by slot, ns; 0: has not arrived
	lag     []int64  // by slot, ns: how late it was sent
	arrived atomic.Int64
	sent    int64
	left    int64 // packets left out because the generator was late, or was held back
	held    int64 // longest time in one write, ns
	starved int64 // time that the sending thread was ready to run and waited for a core, ns
}

func (c *course) received() int64 { return c.arrived.Load() }

// openCrowd dials all peers and begins to read.
func openCrowd(cfg *config) (*crowd, error) {
	// A reader's buffer holds one frame; thousands of larger buffers would only cost memory.
	readBuf := max(8<<10, 2*(cfg.size+offPayload))
	conns, err := dialMany(cfg, cfg.peers, readBuf)
	if err != nil {
		return nil, err
	}
	c := &crowd{conns: conns, size: cfg.size}
	c.now.Store(&course{schedule: &schedule{}})
	for i, nc := range conns {
		c.keys = append(c.keys, nc.pub.AppendTo(nil))
		c.fills = append(c.fills, filler(i, cfg.size))
	}
	for i := range conns {
		go must(func() error { return c.receive(i) })
	}
	return c, nil
}

// receive checks the packets that arrive at a peer until the run is over.
func (c *crowd) receive(me int) error {
	err := c.conns[me].readFrames(func(t derp.FrameType, body []byte) error {
		if t != derp.FrameRecvPacket {
			return nil
		}
		at := stamp()
		return c.check(c.now.Load(), me, body, at)
	})
	if c.over.Load() {
		return nil
	}
	return fmt.Errorf("peer %d: %w", me, err)
}

// check verifies a RecvPacket frame's body that arrived at a peer, and notes its latency.
func (c *crowd) check(now *course, me int, body []byte, at int64) error {
	if len(body) != keyLen+c.size {
		return fmt.Errorf("a packet of %d bytes arrived", len(body)-keyLen)
	}
	payload := body[keyLen:]
	seq := binary.BigEndian.Uint64(payload[offSequence:])
	if seq < now.base {
		return nil // of an earlier course, and counted there as lost
	}
	k := seq - now.base
	if k >= uint64(len(now.slots)) {
		return fmt.Errorf("a packet arrived damaged: number %d of %d", k, len(now.slots))
	}
	x := now.slots[k]
	switch {
	case binary.BigEndian.Uint32(payload) != x.from:
		return fmt.Errorf("packet %d arrived damaged: from sender %d", k, binary.BigEndian.Uint32(payload))
	case int(x.to) != me || binary.BigEndian.Uint32(payload[offReceiver:]) != x.to:
		return fmt.Errorf("packet %d arrived at peer %d instead of %d", k, me, x.to)
	case !bytes.Equal(body[:keyLen], c.keys[x.from]):
		return fmt.Errorf("a packet of sender %d arrived under another's key", x.from)
	case !bytes.Equal(payload[headerLen:], c.fills[x.from]):
		return fmt.Errorf("a packet of sender %d arrived damaged", x.from)
	case seq < now.next[x.stream]:
		return fmt.Errorf("a packet of sender %d arrived twice or out of order", x.from)
	}
	now.next[x.stream] = seq + 1
	now.latency[k] = max(1, at-int64(binary.BigEndian.Uint64(payload[offStamp:])))
	now.arrived.Add(1)
	return nil
}

// newCourse prepares the packets of a rate for a time.
func (c *crowd) newCourse(cfg *config, rate int, total time.Duration) *course {
	n := max(1, int(total.Seconds()*float64(rate)))
	before := c.now.Load()
	x := &course{
		schedule: newSchedule(n, len(c.conns), cfg.peerDests(), uint64(rate)),
		base:     before.base + uint64(len(before.slots)),
		latency:  make([]int64, n),
		lag:      make([]int64, n),
	}
	x.next = make([]uint64, x.streams)
	return x
}

// play sends a course's packets when they are due, all from this goroutine with a thread of its
// own: Go's timers are up to a millisecond late when a program is idle, and packets that are due
// meanwhile would leave as a burst.
func (c *crowd) play(x *course, rate int, start int64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	gap := float64(time.Second) / float64(rate)
	late := int64(max(maxLatePackets*gap, float64(maxLateTime)))
	frame := make([]byte, 0, offPayload+c.size)
	before := waitedForCPU()
	defer func() { x.starved = waitedForCPU() - before }()
	for k, s := range x.slots {
		due := start + int64(gap*float64(k))
		at := stamp()
		if at-due > late {
			x.left++
			continue
		}
		if at < due {
			sleepUntil(due)
			at = stamp()
		}
		x.lag[k] = max(1, at-due)
		frame = fillFrame(frame, c.keys[s.to], s, x.base+uint64(k), at, c.fills[s.from])
		if _, err := c.conns[s.from].nc.Write(frame); err != nil {
			return fmt.Errorf("peer %d: %w", s.from, err)
		}
		x.held = max(x.held, stamp()-at)
		x.sent++
	}
	return nil
}

// waitedForCPU returns how long this thread has been ready to run and waited for a core, in ns; 0 if
// the kernel does not report it.
func waitedForCPU() int64 {
	b, err := os.ReadFile("/proc/thread-self/schedstat")
	if fields := strings.Fields(string(b)); err == nil && len(fields) > 1 {
		ns, _ := strconv.ParseInt(fields[1], 10, 64)
		return ns
	}
	return 0
}

// sleepUntil sleeps by a system call, which is exact to some microseconds.
func sleepUntil(due int64) {
	for left := due - stamp(); left > 0; left = due - stamp() {
		ts := unix.NsecToTimespec(left)
		unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
	}
}

// close ends all connections with RST, so that no port stays in TIME_WAIT: the next run needs them.
func (c *crowd) close() {
	c.over.Store(true)
	for _, x := range c.conns {
		if t, ok := x.raw.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		x.raw.Close()
	}
}

// peersMode measures the CPU and latency of single packets of many peers, at a fixed rate.
func peersMode(cfg *config, relay *process, out report) error {
	c, err := openCrowd(cfg)
	if err != nil {
		return err
	}
	x := c.newCourse(cfg, cfg.rate, cfg.warmup+cfg.dur)
	runtime.GC()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(3 << 30) // bytes; above it, garbage is collected nevertheless
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	first, last, err := c.run(cfg, x, cfg.rate, relay)
	if err != nil {
		return err
	}
	lost := awaitRest(x, x.sent)
	out["size"], out["peers"], out["dests"], out["rate"] = cfg.size, cfg.peers, cfg.peerDests(), cfg.rate
	out["sent"], out["lost"], out["lost_frac"] = x.sent, lost, float64(lost)/float64(x.sent)
	out["left_out"] = x.left
	first.report(last, cfg.size, out)
	x.describe(cfg.rate, cfg.warmup, out)
	c.conns[0].describeTLS(out)
	c.close()
	return nil
}

// run plays a course, and takes a sample after its warm-up and at its end.
func (c *crowd) run(cfg *config, x *course, rate int, relay *process) (first, last sample, err error) {
	c.now.Store(x)
	start := stamp() + int64(time.Millisecond)
	done := make(chan error, 1)
	go func() { done <- c.play(x, rate, start) }()
	warm := int64(float64(cfg.warmup.Nanoseconds()))
	time.Sleep(time.Duration(start + warm - stamp()))
	first = takeSample(x, relay)
	err = <-done
	last = takeSample(x, relay)
	return first, last, err
}

// describe reports latency and how late the generator itself was, after the warm-up.
func (x *course) describe(rate int, warmup time.Duration, out report) {
	from := min(len(x.slots), int(warmup.Seconds()*float64(rate)))
	q := quantiles([][]float64{micros(x.latency[from:])})
	out["p50_us"], out["p90_us"], out["p99_us"], out["p999_us"], out["max_us"] = q(.5), q(.9), q(.99), q(.999), q(1)
	lag := quantiles([][]float64{micros(x.lag[from:])})
	out["send_lag_p50_us"], out["send_lag_p99_us"], out["send_lag_p999_us"] = lag(.5), lag(.99), lag(.999)
	out["starved_ms"] = float64(x.starved) / 1e6
	out["held_max_us"] = float64(x.held) / 1e3
}

// micros returns the noted times in microseconds; slots without one are left out.
func micros(ns []int64) []float64 {
	out := make([]float64, 0, len(ns))
	for _, v := range ns {
		if v > 0 {
			out = append(out, float64(v)/1e3)
		}
	}
	return out
}
