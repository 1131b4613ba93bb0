package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process reads the CPU time and memory of a process and all its descendants.
//
// CPU time is read from the process's CPU clock: user + system of all its threads, also of exited
// ones, in nanoseconds. /proc/PID/stat has the same number rounded to ticks of 10 ms, and
// /proc/PID/task/*/schedstat has it without the exited threads.
type process struct {
	root   int
	method string
	seen   map[int]time.Duration // the last reading of each process, kept when it exits
}

// watchProcess prepares to read the figures of pid; with 0, none are read.
func watchProcess(pid int) (*process, error) {
	p := &process{root: pid, method: "none", seen: map[int]time.Duration{}}
	if pid == 0 {
		return p, nil
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
		return nil, fmt.Errorf("-pid %d: no such process", pid)
	}
	p.method = "cpu clock"
	if _, err := cpuClock(pid); err != nil {
		p.method = "/proc stat ticks"
	}
	return p, nil
}

// cpu returns the CPU time so far.
func (p *process) cpu() time.Duration {
	if p.root == 0 {
		return 0
	}
	read := cpuClock
	if p.method != "cpu clock" {
		read = cpuTicks
	}
	for _, pid := range p.tree() {
		if d, err := read(pid); err == nil {
			p.seen[pid] = d
		}
	}
	var sum time.Duration
	for _, d := range p.seen {
		sum += d
	}
	return sum
}

// tree lists the root and its descendants.
func (p *process) tree() []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if f, err := statFields(pid); err == nil {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], pid)
		}
	}
	out := []int{p.root}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// pss returns the memory in KiB: private pages, and its part of shared ones.
func (p *process) pss() float64 {
	var kib float64
	if p.root == 0 {
		return 0
	}
	for _, pid := range p.tree() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				v, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				kib += v
			}
		}
	}
	return kib
}

// settledPSS waits, at most for limit, until the memory has stayed within 0.5 % for two seconds.
func (p *process) settledPSS(limit time.Duration) (kib float64, settled bool) {
	const step, steps = 250 * time.Millisecond, 8
	var last []float64
	for end := time.Now().Add(limit); ; time.Sleep(step) {
		kib = p.pss()
		last = append(last, kib)
		if len(last) > steps {
			last = last[1:]
			lo, hi := last[0], last[0]
			for _, v := range last {
				lo, hi = min(lo, v), max(hi, v)
			}
			if hi-lo <= 0.005*hi {
				return kib, true
			}
		}
		if time.Now().After(end) {
			return kib, false
		}
	}
}

// cpuClock reads the process's CPU clock (by the id that clock_getcpuclockid(3) returns).
func cpuClock(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// cpuTicks is for kernels without that clock: utime + stime in ticks of 10 ms.
func cpuTicks(pid int) (time.Duration, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// statFields returns the fields of /proc/PID/stat from the third (state) on: the second, the
// name, may hold blanks.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	s := string(b)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:]), nil
}

// ownCPU returns the CPU time of the load generator itself, in seconds.
func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}
