package main

import (
	"encoding/binary"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// maxCatchUp is how many packets a late sender sends without a pause. It leaves out the others
// that are due: a burst longer than a relay's queue would only show that the sender lacked CPU.
const maxCatchUp = 8

// began is the time from which all stamps count.
var began = time.Now()

func stamp() int64 { return int64(time.Since(began)) }

// steady measures latency, from before the sender's write to after the receiver's read, and CPU
// at a fixed rate. The load generator allocates nothing and collects no garbage meanwhile.
func steady(cfg *config, relay *process, out report) error {
	t, err := openTraffic(cfg)
	if err != nil {
		return err
	}
	total := cfg.warmup + cfg.dur
	room := int(total.Seconds()*float64(cfg.rate)/float64(cfg.pairs)) + 1000
	latencies, lags := make([][]float64, cfg.pairs), make([][]float64, cfg.pairs)
	for i := range cfg.pairs {
		latencies[i] = make([]float64, 0, room)
		lags[i] = make([]float64, 0, room)
	}
	runtime.GC()
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(2 << 30) // bytes; above it, garbage is collected nevertheless
	var gc0, gc1 debug.GCStats
	debug.ReadGCStats(&gc0)

	start := stamp()
	measured, end := start+int64(cfg.warmup), start+int64(total)
	for i, p := range t.pairs {
		go must(func() error {
			return t.receive(p, func(payload []byte) {
				at := int64(binary.BigEndian.Uint64(payload[offStamp:]))
				if at >= measured {
					latencies[i] = append(latencies[i], float64(stamp()-at)/1e3)
				}
			})
		})
		go must(func() error { return t.drainSender(p) })
	}
	sent := make([]int64, cfg.pairs)
	var wg sync.WaitGroup
	for i, p := range t.pairs {
		wg.Go(func() {
			must(func() error {
				n, lag, err := pace(cfg, t, p, start, measured, end, lags[i])
				sent[i], lags[i] = n, lag
				return err
			})
		})
	}
	time.Sleep(time.Duration(measured - stamp()))
	first := takeSample(t, relay)
	time.Sleep(time.Duration(end - stamp()))
	last := takeSample(t, relay)
	wg.Wait()

	var all int64
	for _, n := range sent {
		all += n
	}
	lost := awaitRest(t, all)
	debug.ReadGCStats(&gc1)
	t.close()
	out["size"], out["pairs"], out["rate"] = cfg.size, cfg.pairs, cfg.rate
	out["sent"], out["lost"], out["lost_frac"] = all, lost, float64(lost)/float64(all)
	first.report(last, cfg.size, out)
	q := quantiles(latencies)
	out["p50_us"], out["p90_us"], out["p99_us"], out["p999_us"], out["max_us"] = q(.5), q(.9), q(.99), q(.999), q(1)
	// How late the sender itself was: a busy machine must not count against the relay.
	out["send_lag_p99_us"] = quantiles(lags)(.99)
	out["gc_runs"] = gc1.NumGC - gc0.NumGC
	t.pairs[0].tx.describeTLS(out)
	return nil
}

// pace sends p's part of the rate to p's own receiver, a packet a write. It returns how many it
// sent, and how late they were.
func pace(cfg *config, t *traffic, p *pair, start, measured, end int64, lags []float64) (int64, []float64, error) {
	frame := appendFrame(nil, p.rx.pub, p.index, p.index, t.fills[p.index])
	gap := float64(time.Second) * float64(cfg.pairs) / float64(cfg.rate)
	// The pairs begin one after the other, so that they do not all send at the same moment.
	offset := float64(start) + gap*float64(p.index)/float64(cfg.pairs)
	for n := int64(0); ; n++ {
		due := int64(offset + gap*float64(n))
		if due >= end {
			return n, lags, nil
		}
		if left := float64(stamp()-due) - maxCatchUp*gap; left > 0 {
			offset += left
		}
		if wait := due - stamp(); wait > 0 {
			time.Sleep(time.Duration(wait))
		}
		now := stamp()
		if now >= end {
			return n, lags, nil
		}
		if now >= measured {
			lags = append(lags, float64(now-due)/1e3)
		}
		binary.BigEndian.PutUint64(frame[frameSeqOff:], uint64(n))
		binary.BigEndian.PutUint64(frame[frameTimeOff:], uint64(now))
		if _, err := p.tx.nc.Write(frame); err != nil {
			return n, lags, err
		}
	}
}

// quantiles sorts all values together and returns the function that looks one up.
func quantiles(parts [][]float64) func(float64) float64 {
	all := slices.Concat(parts...)
	slices.Sort(all)
	return func(f float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[int(f*float64(len(all)-1))]
	}
}
