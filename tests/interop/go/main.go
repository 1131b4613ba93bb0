// Command gopeer drives a DERP relay with Tailscale's own client packages.
//
// It holds one scenario for each behaviour that a client can see on the wire. Every scenario runs against
// Go's derper as well as against the relay under test: what derper does is the expectation, and the few
// places where a relay may differ on purpose ask cfg.kind and say why.
//
// Each scenario prints one JSON line; the process exits with 1 if any of them failed.
//
// Build it with -tags ts_debug_websockets: without the tag Go's client has no websockets, and the scenarios
// that should use one fail.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strings"
	"time"
)

// scenario is one named behaviour.
type scenario struct {
	name string
	help string
	run  func(*run)
}

var scenarios = map[string]scenario{}

// register adds a scenario to the list; each file registers its own in an init function.
func register(name, help string, f func(*run)) {
	if _, dup := scenarios[name]; dup {
		panic("scenario registered twice: " + name)
	}
	scenarios[name] = scenario{name, help, f}
}

func scenarioNames() []string {
	names := make([]string, 0, len(scenarios))
	for name := range scenarios {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func main() {
	var (
		list  = flag.Bool("list", false, "list the scenarios and exit")
		which = flag.String("scenario", "", "comma-separated scenario names")
		limit = flag.Duration("timeout", 60*time.Second, "upper bound for one scenario")
	)
	cfg := configFlags()
	flag.Parse()
	if *list {
		for _, name := range scenarioNames() {
			fmt.Printf("%-16s %s\n", name, scenarios[name].help)
		}
		return
	}
	if !cfg.verbose {
		log.SetOutput(io.Discard) // upstream's packages log through the default logger
	}
	if err := cfg.prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "gopeer:", err)
		os.Exit(2)
	}
	allOK := true
	for _, name := range strings.Split(*which, ",") {
		s, known := scenarios[name]
		if !known {
			fmt.Fprintf(os.Stderr, "gopeer: no scenario %q; -list names them\n", name)
			os.Exit(2)
		}
		ok := runScenario(cfg, s, *limit)
		allOK = allOK && ok
	}
	if !allOK {
		os.Exit(1)
	}
}

// runScenario runs one scenario and prints its line.
//
// A scenario that overruns is abandoned, not stopped: a goroutine cannot be ended from outside, and the
// process exits soon after.
func runScenario(cfg *config, s scenario, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r := newRun(ctx, cfg)
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- r.guard(s.run) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("scenario took longer than %v (last step: %s)", limit, r.lastStep())
	}
	line := r.snapshot()
	line["scenario"] = s.name
	line["ok"] = err == nil
	line["seconds"] = float64(time.Since(start).Milliseconds()) / 1000
	if err != nil {
		line["error"] = err.Error()
	}
	out, jsonErr := json.Marshal(line)
	if jsonErr != nil {
		panic(jsonErr)
	}
	fmt.Println(string(out))
	return err == nil
}
