package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// stepLimit bounds every single wait. A loopback answer takes well under a millisecond; the rest is for
// machines that are busy with something else.
const stepLimit = 10 * time.Second

// settle is how long an absence is observed when no event can prove it. Only upstream's PeerGone, which is
// sent by independent goroutines, needs it: everything else is ordered by a ping barrier.
const settle = 150 * time.Millisecond

// run is the state of one running scenario.
type run struct {
	ctx context.Context
	cfg *config
	rng *rand.Rand

	mu      sync.Mutex
	facts   map[string]any
	step    string
	cleanup []func()
}

func newRun(ctx context.Context, cfg *config) *run {
	return &run{
		ctx:   ctx,
		cfg:   cfg,
		rng:   rand.New(rand.NewPCG(cfg.seed, 0x6465_7270)),
		facts: map[string]any{},
	}
}

// failure is what fatalf panics with; any other panic is a bug and keeps its stack.
type failure struct{ msg string }

func (r *run) guard(f func(*run)) (err error) {
	defer r.closeAll()
	defer func() {
		switch p := recover().(type) {
		case nil:
		case failure:
			err = fmt.Errorf("%s", p.msg)
			if step := r.lastStep(); step != "" {
				err = fmt.Errorf("%s: %s", step, p.msg)
			}
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	f(r)
	return nil
}

// fatalf ends the scenario. It may only be called from the scenario's own goroutine.
func (r *run) fatalf(format string, args ...any) {
	panic(failure{fmt.Sprintf(format, args...)})
}

func (r *run) must(err error, format string, args ...any) {
	if err != nil {
		r.fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

func (r *run) check(ok bool, format string, args ...any) {
	if !ok {
		r.fatalf(format, args...)
	}
}

// at names the step under way, as a prefix for the error of whatever fails next.
func (r *run) at(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step = fmt.Sprintf(format, args...)
}

func (r *run) lastStep() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.step
}

// fact records something for the caller to assert on.
func (r *run) fact(name string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts[name] = value
}

// fact1 records a value only if none of that name is known yet.
func (r *run) fact1(name string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.facts[name]; !known {
		r.facts[name] = value
	}
}

func (r *run) snapshot() map[string]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.facts)
}

// onClose registers something to close when the scenario ends, in reverse order.
func (r *run) onClose(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanup = append(r.cleanup, f)
}

func (r *run) closeAll() {
	r.mu.Lock()
	todo := r.cleanup
	r.cleanup = nil
	r.mu.Unlock()
	for i := len(todo) - 1; i >= 0; i-- {
		todo[i]()
	}
}

// bytes returns n seeded random bytes.
func (r *run) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.rng.Uint32())
	}
	return b
}

// disco returns a payload of n bytes that a relay takes for a disco message: at least 62 bytes and the
// six-byte disco magic in front.
func (r *run) disco(n int) []byte {
	b := r.bytes(n)
	copy(b, "TS\xf0\x9f\x92\xac")
	return b
}

// sameBytes compares without printing 64 KiB when it fails.
func sameBytes(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%d bytes differ from offset %d: %#02x, want %#02x", len(got), i, got[i], want[i])
		}
	}
	return nil
}
