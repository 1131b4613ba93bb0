package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"net/http"
	"strings"
	"sync"
)

// recorder is a connection that remembers the first bytes of both directions and, if they turn out to be
// a websocket handshake, the message sizes that follow.
//
// It exists because Go silently falls back to plain TCP when its websocket client is not compiled in: a
// test that does not look at the bytes can pass without ever having spoken websocket.
type recorder struct {
	net.Conn
	out direction
	in  direction
}

const headLimit = 16 << 10

// direction is what went one way.
type direction struct {
	mu   sync.Mutex
	head []byte
	ws   wsMeter
}

func (d *direction) note(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ws.active {
		d.ws.feed(b)
	}
	if room := headLimit - len(d.head); room > 0 {
		before := len(d.head)
		d.head = append(d.head, b[:min(room, len(b))]...)
		if !d.ws.active && d.ws.possible {
			if end := strings.Index(string(d.head), "\r\n\r\n"); end >= 0 {
				d.ws.active = true
				d.ws.feed(b[end+4-before:])
			}
		}
	}
}

func (d *direction) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.head)
}

func (d *direction) messages() (count, biggest int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ws.count, d.ws.biggest
}

// newRecorder wraps nc; ws turns the counting of websocket messages on.
func newRecorder(nc net.Conn, ws bool) *recorder {
	r := &recorder{Conn: nc}
	r.out.ws.possible, r.in.ws.possible = ws, ws
	return r
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.in.note(b[:n])
	return n, err
}

func (r *recorder) Write(b []byte) (int, error) {
	r.out.note(b) // before the write: the answer may be looked at as soon as that has happened
	return r.Conn.Write(b)
}

// transport names what was really spoken.
func (r *recorder) transport() string {
	out, in := strings.ToLower(r.out.text()), strings.ToLower(r.in.text())
	switch {
	case strings.HasPrefix(out, "\x16\x03"):
		return "tls"
	case !strings.HasPrefix(out, "get "):
		return "unknown"
	case strings.Contains(out, "\r\nupgrade: websocket\r\n") &&
		strings.Contains(out, "\r\nsec-websocket-protocol: derp\r\n") &&
		strings.HasPrefix(in, "http/1.1 101 ") && strings.Contains(in, "\r\nupgrade: websocket\r\n"):
		return "websocket"
	case strings.Contains(out, "\r\nupgrade: derp\r\n"):
		return "derp"
	}
	return "unknown"
}

// tlsRecords returns the sizes of the application-data records the client sent at the start of a TLS
// connection. In TLS 1.3 the first one is its Finished message and the second its first request.
func (r *recorder) tlsRecords() (sizes []int) {
	b := []byte(r.out.text())
	for len(b) >= 5 {
		n := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] == 23 {
			sizes = append(sizes, n)
		}
		if len(b) < 5+n {
			break
		}
		b = b[5+n:]
	}
	return sizes
}

// wsMeter follows websocket framing far enough to know the size of each data message.
type wsMeter struct {
	possible, active bool
	hdr              []byte
	skip             uint64
	current          uint64
	count, biggest   int
}

func (m *wsMeter) feed(b []byte) {
	for len(b) > 0 {
		if m.skip > 0 {
			n := min(m.skip, uint64(len(b)))
			m.skip -= n
			b = b[n:]
			continue
		}
		m.hdr = append(m.hdr, b[0])
		b = b[1:]
		if h := parseWSHeader(m.hdr); h.complete {
			m.hdr = m.hdr[:0]
			m.skip = h.length
			if h.opcode < 8 {
				m.current += h.length
				if h.fin {
					m.count++
					m.biggest = max(m.biggest, int(m.current))
					m.current = 0
				}
			}
		}
	}
}

// slotKey carries, in the context of a dial, the place where the recorder is to be left. derphttp hands
// neither its websocket nor the connection below it out, but it passes its context on.
type slotKey struct{}

func withSlot(ctx context.Context, slot **recorder) context.Context {
	return context.WithValue(ctx, slotKey{}, slot)
}

// webTransport dials the relay, whatever the URL's host, and records the HTTP bytes: above TLS, if any.
func (c *config) webTransport() *http.Transport {
	record := func(ctx context.Context, nc net.Conn, err error) (net.Conn, error) {
		if err != nil {
			return nil, err
		}
		rec := newRecorder(nc, true)
		if slot, ok := ctx.Value(slotKey{}).(**recorder); ok {
			*slot = rec
		}
		return rec, nil
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, err := dialTimeout().DialContext(ctx, "tcp", c.hostPort())
			return record(ctx, nc, err)
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := tls.Dialer{NetDialer: dialTimeout(), Config: c.tlsConfig()}
			nc, err := d.DialContext(ctx, "tcp", c.hostPort())
			return record(ctx, nc, err)
		},
	}
}
