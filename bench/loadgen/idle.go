package main

import (
	"fmt"
	"time"
)

// idle measures what a connection costs: CPU to accept it and log it in, memory to keep it.
//
// The first -warm-conns connections are not counted but stay open. So neither work that a relay does
// only once counts, nor memory that it would use again.
func idle(cfg *config, relay *process, out report) error {
	warm, err := dialMany(cfg, cfg.warmConns, idleReadBuf)
	if err != nil {
		return err
	}
	base, settled := relay.settledPSS(cfg.settle)

	cpu, began := relay.cpu(), time.Now()
	conns, err := dialMany(cfg, cfg.conns, idleReadBuf)
	if err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	time.Sleep(200 * time.Millisecond) // work that a relay does after the login counts, too
	spent := (relay.cpu() - cpu).Seconds()

	full, settledAgain := relay.settledPSS(cfg.settle)
	all := append(warm, conns...)
	for _, c := range all {
		if err := c.ping(); err != nil {
			return fmt.Errorf("an idle connection does not answer: %w", err)
		}
	}
	n := float64(cfg.conns)
	out["conns"], out["ok"], out["warm_conns"] = cfg.conns, len(conns), cfg.warmConns
	out["connects_per_s"] = int(n / seconds)
	if relay.root != 0 {
		out["server_us_per_connect"] = spent * 1e6 / n
		out["KiB_per_conn"] = (full - base) / n
		out["base_MiB"], out["MiB"] = base/1024, full/1024
		out["settled"] = settled && settledAgain
	}
	all[len(all)-1].describeTLS(out)
	for _, c := range all {
		c.nc.Close()
	}
	return nil
}
