package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	ceilingStep  = 1.25
	ceilingLoss  = 0.001 // a relay that loses more does not keep up
	ceilingShort = 0.01  // nor does one that makes the generator send less than its rate by this part
	// A generator that is late and waited for a core longer than this part of the time lacked CPU;
	// then the relay may be able to do more.
	ceilingStarved = 0.05

	ceilingMin = 1000
	ceilingMax = 2_000_000
)

// rung is the result of one rate.
type rung struct {
	Rate    int     `json:"rate"`
	Sent    int64   `json:"sent"`
	Lost    int64   `json:"lost"`
	LeftOut int64   `json:"left_out"`
	PerS    float64 `json:"pkts_per_s"`
	Cores   float64 `json:"server_cpu_cores"`
	OwnCPU  float64 `json:"loadgen_cpu_cores"`
	Starved float64 `json:"starved"` // part of the time that the sending thread waited for a core
	Fails   string  `json:"fails,omitempty"`
}

// search looks for the highest rate that does not fail.
type search struct {
	climb     func(rate int) (rung, error)
	good, bad rung
	rungs     []rung
}

// try plays a rate; a rate fails if it fails twice.
func (s *search) try(rate int) error {
	r, err := s.climb(rate)
	if err == nil && r.Fails != "" {
		s.rungs = append(s.rungs, r)
		r, err = s.climb(rate)
	}
	if err != nil {
		return err
	}
	s.rungs = append(s.rungs, r)
	if r.Fails == "" {
		s.good = r
	} else {
		s.bad = r
	}
	return nil
}

// run halves the first rate until it does not fail, raises it until it does, then halves the last
// step twice.
func (s *search) run(rate int) error {
	for ; s.good.Rate == 0 && rate >= ceilingMin; rate /= 2 { // a slow or busy machine
		if err := s.try(rate); err != nil {
			return err
		}
	}
	for rate = s.good.Rate; s.bad.Rate == 0 && rate > 0 && rate < ceilingMax; {
		rate = int(float64(rate) * ceilingStep)
		if err := s.try(rate); err != nil {
			return err
		}
	}
	for range 2 {
		if s.good.Rate == 0 || s.bad.Rate == 0 {
			break
		}
		if err := s.try((s.good.Rate + s.bad.Rate) / 2); err != nil {
			return err
		}
	}
	return nil
}

// ceiling raises the rate until the relay loses packets or no longer reads them in time.
func ceiling(cfg *config, relay *process, out report) error {
	c, err := openCrowd(cfg)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)
	s := &search{}
	s.climb = func(rate int) (rung, error) { return c.climb(cfg, rate, relay) }
	if err := s.run(cfg.rate); err != nil {
		return err
	}
	good, bad, rungs := s.good, s.bad, s.rungs
	c.conns[0].describeTLS(out)
	c.close()
	if good.Rate == 0 {
		return fmt.Errorf("the relay does not keep up with %d packets/s: %s", bad.Rate, bad.Fails)
	}
	out["size"], out["peers"], out["dests"], out["rungs"] = cfg.size, cfg.peers, cfg.peerDests(), rungs
	out["max_pkts_per_s"], out["limited_by"] = good.PerS, bad.Fails
	out["server_cpu_cores"], out["loadgen_cpu_cores"] = good.Cores, good.OwnCPU
	return nil
}

// climb plays one rate.
func (c *crowd) climb(cfg *config, rate int, relay *process) (rung, error) {
	x := c.newCourse(cfg, rate, cfg.warmup+cfg.dur)
	runtime.GC()
	old := debug.SetGCPercent(-1)
	first, last, err := c.run(cfg, x, rate, relay)
	debug.SetGCPercent(old)
	if err != nil {
		return rung{}, err
	}
	seconds := last.at.Sub(first.at).Seconds()
	lost := awaitRest(x, x.sent)
	r := rung{
		Rate: rate, Sent: x.sent, Lost: lost, LeftOut: x.left,
		PerS:    float64(last.received-first.received) / seconds,
		Cores:   (last.relayCPU - first.relayCPU).Seconds() / seconds,
		Starved: time.Duration(x.starved).Seconds() / (cfg.warmup + cfg.dur).Seconds(),
		OwnCPU:  (last.ownCPU - first.ownCPU) / seconds,
	}
	switch {
	case float64(lost) > ceilingLoss*float64(x.sent):
		r.Fails = "loss"
	case float64(x.left) > ceilingShort*float64(len(x.slots)),
		last.at.Sub(first.at) > cfg.dur+cfg.dur/100+10*time.Millisecond:
		r.Fails = "back-pressure"
		if r.Starved > ceilingStarved {
			r.Fails = "the generator's lack of CPU"
		}
	}
	return r, nil
}
