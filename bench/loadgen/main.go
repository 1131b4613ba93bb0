// Loadgen puts load on a DERP relay over real sockets, and reports CPU and memory of the relay.
//
// It prints one JSON object. Every packet's content, sender, order and loss is checked; the
// relay's CPU time and memory are read from the kernel when -pid names its process.
//
//	loadgen -addr 127.0.0.1:3340 -pid 4711                      full speed, limited by a window
//	loadgen -addr 127.0.0.1:3340 -pid 4711 -mode rate           a steady rate: latency and CPU
//	loadgen -addr 127.0.0.1:3340 -pid 4711 -mode rate -peers 500    single packets of many peers
//	loadgen -addr 127.0.0.1:3340 -pid 4711 -mode ceiling        raises the rate until packets are lost
//	loadgen -addr 127.0.0.1:3340 -pid 4711 -mode idle -tls      what a connection costs
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"time"
)

// config has the flags of the command line.
type config struct {
	addr string
	tls  bool
	ws   bool
	iroh bool
	sni  string
	mode string
	pid  int

	pairs  int
	size   int
	dur    time.Duration
	warmup time.Duration

	window int
	burst  int
	dests  int
	split  bool

	rate  int
	peers int

	conns     int
	warmConns int
	parallel  int
	settle    time.Duration
}

func parseFlags() *config {
	c := new(config)
	flag.StringVar(&c.addr, "addr", "127.0.0.1:3340", "relay host:port")
	flag.BoolVar(&c.tls, "tls", false, "TLS 1.3 (the certificate is not verified)")
	flag.BoolVar(&c.ws, "ws", false, "DERP in a websocket")
	flag.BoolVar(&c.iroh, "iroh", false, "iroh-relay's protocol instead of DERP, always in a websocket")
	flag.StringVar(&c.sni, "sni", "", "TLS server name, if not the address")
	flag.StringVar(&c.mode, "mode", "blast", "blast, rate, ceiling, idle")
	flag.IntVar(&c.pid, "pid", 0, "relay pid (and its children) to account CPU and memory to")
	flag.IntVar(&c.pairs, "pairs", 8, "pairs of a sender and a receiver (blast, rate)")
	flag.IntVar(&c.size, "size", 1200, "payload bytes")
	flag.DurationVar(&c.dur, "t", 5*time.Second, "measured time (blast, rate)")
	flag.DurationVar(&c.warmup, "warmup", 500*time.Millisecond, "time of load before it (blast, rate)")
	flag.IntVar(&c.window, "window", 24, "packets in flight per sender (blast)")
	flag.IntVar(&c.burst, "burst", 8, "packets per write (blast)")
	flag.IntVar(&c.dests, "dests", 0, "receivers each sender picks from at random, packet by packet; 0: one in blast, all other -peers")
	flag.BoolVar(&c.split, "split", true, "one write, so one TLS record, a packet, as Go's client does (blast)")
	flag.IntVar(&c.rate, "rate", 10000, "packets/s of all pairs or peers together (rate), the first that is tried (ceiling)")
	flag.IntVar(&c.peers, "peers", 0, "instead of pairs, connections that all send and receive (rate); 16 by default (ceiling)")
	flag.IntVar(&c.conns, "conns", 1000, "connections measured (idle)")
	flag.IntVar(&c.warmConns, "warm-conns", 100, "connections opened before and kept open, not measured (idle)")
	flag.IntVar(&c.parallel, "parallel", 32, "dials under way at the same time")
	flag.DurationVar(&c.settle, "settle", 15*time.Second, "longest wait for the relay's memory to settle (idle)")
	flag.Parse()
	c.complete()
	if err := c.validate(); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(2)
	}
	return c
}

// complete sets the defaults that depend on other flags.
func (c *config) complete() {
	if c.mode == "ceiling" && c.peers == 0 {
		c.peers = 16
	}
	if c.peers == 0 && c.dests == 0 {
		c.dests = 1
	}
}

// peerDests is how many receivers a peer picks from.
func (c *config) peerDests() int {
	if c.dests == 0 {
		return c.peers - 1
	}
	return c.dests
}

func (c *config) validate() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case c.size < headerLen || c.size > maxPayload:
		return fmt.Errorf("-size must be %d to %d", headerLen, maxPayload)
	case c.pairs < 1 || c.burst < 1 || c.rate < 1 || c.conns < 1 || c.parallel < 1 || c.warmConns < 0:
		return fmt.Errorf("-pairs, -burst, -rate, -conns and -parallel must be at least 1")
	case c.window < c.burst:
		return fmt.Errorf("-window must be at least -burst")
	case c.peers == 1 || c.peers < 0:
		return fmt.Errorf("-peers must be at least 2")
	case c.peers > 0 && (c.dests < 0 || c.dests >= c.peers):
		return fmt.Errorf("-dests must be less than -peers")
	case c.peers == 0 && (c.dests < 1 || c.dests > c.pairs):
		return fmt.Errorf("-dests must be 1 to -pairs")
	case c.dur <= 0:
		return fmt.Errorf("-t must be positive")
	}
	return nil
}

// report is the JSON object that is printed.
type report map[string]any

func main() {
	log.SetFlags(0)
	log.SetPrefix("loadgen: ")
	cfg := parseFlags()
	relay, err := watchProcess(cfg.pid)
	if err != nil {
		log.Fatal(err)
	}
	out := report{"mode": cfg.mode, "tls": cfg.tls, "go": runtime.Version(), "cpu_clock": relay.method}
	switch cfg.mode {
	case "blast":
		err = blast(cfg, relay, out)
	case "rate":
		measure := steady
		if cfg.peers > 0 {
			measure = peersMode
		}
		err = measure(cfg, relay, out)
	case "ceiling":
		err = ceiling(cfg, relay, out)
	case "idle":
		err = idle(cfg, relay, out)
	default:
		err = fmt.Errorf("unknown mode %q: blast, rate, ceiling or idle", cfg.mode)
	}
	if err != nil {
		log.Fatal(err)
	}
	b, err := json.Marshal(out)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(b))
}
