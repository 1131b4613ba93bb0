package main

import (
	"encoding/binary"
	"log"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// sampleGap is the time between two looks at a sender's progress. Loss is mostly known from the
// next packet that arrives; a sender without progress for two samples counts all packets in flight
// as lost, and continues.
const sampleGap = 100 * time.Millisecond

// batch is the packets of one burst, framed.
type batch struct {
	bytes     []byte
	receivers []int
}

// blaster sends as fast as its window lets it.
type blaster struct {
	*pair
	cfg        *config
	batches    []batch
	next       []uint64 // next sequence number by receiver
	sent       int64
	writtenOff int64 // packets in flight for too long, which count as lost
	stalled    atomic.Bool
}

func newBlaster(cfg *config, t *traffic, p *pair) *blaster {
	b := &blaster{pair: p, cfg: cfg, next: make([]uint64, cfg.pairs)}
	rng := rand.New(rand.NewPCG(uint64(p.index), 7))
	for range 16 {
		var x batch
		for range cfg.burst {
			to := (p.index + rng.IntN(cfg.dests)) % cfg.pairs
			x.bytes = appendFrame(x.bytes, t.pairs[to].rx.pub, p.index, to, t.fills[p.index])
			x.receivers = append(x.receivers, to)
		}
		b.batches = append(b.batches, x)
	}
	return b
}

// run sends until stop is closed.
func (b *blaster) run(stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(uint64(b.index), 8))
	frame := offPayload + b.cfg.size
	for b.waitForRoom(stop) {
		x := b.batches[rng.IntN(len(b.batches))]
		for i, to := range x.receivers {
			binary.BigEndian.PutUint64(x.bytes[i*frame+frameSeqOff:], b.next[to])
			b.next[to]++
		}
		step := len(x.bytes)
		if b.cfg.split {
			step = frame
		}
		for i := 0; i < len(x.bytes); i += step {
			if _, err := b.tx.nc.Write(x.bytes[i : i+step]); err != nil {
				return err
			}
		}
		b.sent += int64(b.cfg.burst)
	}
	return nil
}

// waitForRoom waits until another burst fits the window. It returns false when stop is closed.
func (b *blaster) waitForRoom(stop <-chan struct{}) bool {
	b.stalled.Store(false)
	for {
		select {
		case <-stop:
			return false
		default:
		}
		flying := b.sent - b.settled.Load() - b.writtenOff
		if b.stalled.Swap(false) || flying < 0 { // they count as lost, or arrived later
			b.writtenOff += flying
			flying = 0
		}
		if flying <= int64(b.cfg.window-b.cfg.burst) {
			return true
		}
		select {
		case <-b.credit:
		case <-stop:
			return false
		}
	}
}

// wakeStalled wakes the senders that have made no progress for two samples.
func wakeStalled(senders []*blaster, stop <-chan struct{}) {
	settled, still := make([]int64, len(senders)), make([]int, len(senders))
	tick := time.NewTicker(sampleGap)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for i, s := range senders {
			if n := s.settled.Load(); n != settled[i] {
				settled[i], still[i] = n, 0
				continue
			}
			if still[i]++; still[i] >= 2 {
				s.stalled.Store(true)
				select {
				case s.credit <- struct{}{}:
				default:
				}
			}
		}
	}
}

// blast measures the relay under all the load that the windows allow.
func blast(cfg *config, relay *process, out report) error {
	t, err := openTraffic(cfg)
	if err != nil {
		return err
	}
	var senders []*blaster
	for _, p := range t.pairs {
		senders = append(senders, newBlaster(cfg, t, p))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range senders {
		go must(func() error { return t.receive(s.pair, nil) })
		go must(func() error { return t.drainSender(s.pair) })
		wg.Go(func() { must(func() error { return s.run(stop) }) })
	}
	go wakeStalled(senders, stop)

	time.Sleep(cfg.warmup)
	begin := takeSample(t, relay)
	time.Sleep(cfg.dur)
	end := takeSample(t, relay)
	close(stop)
	wg.Wait()

	var sent int64
	for _, s := range senders {
		sent += s.sent
	}
	lost := awaitRest(t, sent)
	out["size"], out["split"], out["window"] = cfg.size, cfg.split, cfg.window
	out["pairs"], out["dests"], out["burst"] = cfg.pairs, cfg.dests, cfg.burst
	out["sent"], out["lost"], out["lost_frac"] = sent, lost, float64(lost)/float64(sent)
	begin.report(end, cfg.size, out)
	t.pairs[0].tx.describeTLS(out)
	t.close()
	return nil
}

// awaitRest waits for the packets in flight, and returns how many never arrived.
func awaitRest(t counter, sent int64) int64 {
	got := t.received()
	for still := 0; got < sent && still < 5; still++ {
		time.Sleep(sampleGap)
		if n := t.received(); n != got {
			got, still = n, 0
		}
	}
	return sent - got
}

// sample is the state of the counters at one moment.
type sample struct {
	at       time.Time
	relayCPU time.Duration
	ownCPU   float64
	received int64
}

// counter counts the packets that have arrived so far.
type counter interface{ received() int64 }

func takeSample(t counter, relay *process) sample {
	return sample{at: time.Now(), relayCPU: relay.cpu(), ownCPU: ownCPU(), received: t.received()}
}

// report writes the figures between the samples s and end.
func (s sample) report(end sample, size int, out report) {
	seconds := end.at.Sub(s.at).Seconds()
	n := end.received - s.received
	if n == 0 {
		log.Fatal("no packet arrived in the measured time")
	}
	out["seconds"], out["received"] = seconds, n
	out["pkts_per_s"] = int(float64(n) / seconds)
	out["MBps"] = int(float64(n) * float64(size) / seconds / 1e6)
	out["loadgen_cpu_cores"] = (end.ownCPU - s.ownCPU) / seconds
	if cpu := (end.relayCPU - s.relayCPU).Seconds(); cpu > 0 {
		out["server_cpu_cores"] = cpu / seconds
		out["server_us_per_pkt"] = cpu * 1e6 / float64(n)
		out["pkts_per_cpu_s"] = int(float64(n) / cpu)
	}
}

// must runs f; if f fails, the run has no valid result.
func must(f func() error) {
	if err := f(); err != nil {
		log.Fatal(err)
	}
}
