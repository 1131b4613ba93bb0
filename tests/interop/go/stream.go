package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/net/wsconn"
	"tailscale.com/types/key"
)

// stream is an upgraded connection on which DERP bytes flow, before any DERP login. It is what the
// scenarios use that must send things which upstream's client would never send.
type stream struct {
	nc  net.Conn // carries the DERP bytes
	br  *bufio.Reader
	rec *recorder
}

// dialRaw connects to the relay's port, over TLS if the URL says so, and sends nothing.
func (c *config) dialRaw(ctx context.Context) (net.Conn, *recorder, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	nc, err := dialTimeout().DialContext(ctx, "tcp", c.hostPort())
	if err != nil {
		return nil, nil, err
	}
	rec := newRecorder(nc, false)
	if !c.tls() {
		return rec, rec, nil
	}
	tc := tls.Client(rec, c.tlsConfig())
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, nil, err
	}
	return tc, rec, nil
}

// dialStream connects and upgrades, by the transport under test. Extra header lines end in CRLF.
func (c *config) dialStream(ctx context.Context, extraHeader string) (*stream, error) {
	if c.mode == modeWS {
		return c.dialWS(ctx)
	}
	nc, rec, err := c.dialRaw(ctx)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(stepLimit))
	br := bufio.NewReader(nc)
	fmt.Fprintf(nc, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n%s\r\n",
		c.url.RequestURI(), c.url.Host, extraHeader)
	res, err := http.ReadResponse(br, nil)
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("upgrade answered %s", res.Status)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	nc.SetDeadline(time.Time{})
	return &stream{nc, br, rec}, nil
}

// errNotRecorded means that nothing proves the connection to be a websocket.
var errNotRecorded = errors.New("the websocket was not dialled through the recorder")

func (c *config) dialWS(ctx context.Context) (*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	var rec *recorder
	ws, _, err := websocket.Dial(withSlot(ctx, &rec), c.url.String(), &websocket.DialOptions{Subprotocols: []string{"derp"}})
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, errNotRecorded
	}
	nc := wsconn.NetConn(context.Background(), ws, websocket.MessageBinary, c.url.String())
	return &stream{nc, bufio.NewReader(nc), rec}, nil
}

// stream dials one that is closed at the end of the scenario.
func (r *run) stream() *stream {
	s, err := r.cfg.dialStream(r.ctx, "")
	r.must(err, "dial")
	r.onClose(func() { s.nc.Close() })
	return s
}

// frameHeader packs the five bytes before each DERP payload.
func frameHeader(t derp.FrameType, n int) []byte {
	b := []byte{byte(t), 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	return b
}

// frame packs a whole DERP frame.
func frame(t derp.FrameType, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := frameHeader(t, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// wsChunk is the most that one websocket message may hold so that derper's websocket library reads it.
const wsChunk = 16 << 10

// write sends bytes in chunks that any relay takes as websocket messages.
func (s *stream) write(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), wsChunk)
		if _, err := s.nc.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// readFrame reads one frame within limit.
//
// The bound is a timer that closes the connection and not a deadline: on a websocket the two are the same,
// and wsconn can lose a deadline that is set twice in a row.
func (s *stream) readFrame(limit time.Duration) (derp.FrameType, []byte, error) {
	timer := time.AfterFunc(limit, func() { s.nc.Close() })
	defer timer.Stop()
	t, n, err := derp.ReadFrameHeader(s.br)
	if err != nil {
		return 0, nil, err
	}
	if n > 1<<20 {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(s.br, b)
	return t, b, err
}

// serverKey reads the greeting.
func (s *stream) serverKey() (key.NodePublic, error) {
	t, b, err := s.readFrame(stepLimit)
	if err != nil {
		return key.NodePublic{}, err
	}
	if t != derp.FrameServerKey || len(b) != 40 || !strings.HasPrefix(string(b), derp.Magic) {
		return key.NodePublic{}, fmt.Errorf("greeting is frame %#02x with %d bytes", byte(t), len(b))
	}
	return key.NodePublicFromRaw32(mem.B(b[8:])), nil
}

// clientInfo packs a login frame with the given JSON text.
func clientInfo(priv key.NodePrivate, server key.NodePublic, text string) []byte {
	return frame(derp.FrameClientInfo, priv.Public().AppendTo(nil), priv.SealTo(server, []byte(text)))
}

const ordinaryInfo = `{"version":2,"CanAckPings":true}`

// login reads the greeting, sends a ClientInfo with this text and returns what the answer's box holds.
func (s *stream) login(priv key.NodePrivate, text string) (string, error) {
	server, err := s.serverKey()
	if err != nil {
		return "", err
	}
	if err := s.write(clientInfo(priv, server, text)); err != nil {
		return "", err
	}
	t, b, err := s.readFrame(stepLimit)
	if err != nil {
		return "", err
	}
	if t != derp.FrameServerInfo {
		return "", fmt.Errorf("first frame after the login is %#02x, want ServerInfo", byte(t))
	}
	info, ok := priv.OpenFrom(server, b)
	if !ok {
		return "", errors.New("box of ServerInfo does not open")
	}
	return string(info), nil
}

// errTimedOut distinguishes a silent relay from one that closed.
var errTimedOut = errors.New("still open")

// hangUp waits for the relay to close the stream, and fails if it sends anything first.
func (s *stream) hangUp(limit time.Duration) error {
	timer := time.AfterFunc(limit, func() { s.nc.Close() })
	n, _ := io.Copy(io.Discard, s.br) // EOF and a reset are both ways to hang up
	if !timer.Stop() {
		return errTimedOut
	}
	if n > 0 {
		return fmt.Errorf("%d bytes before the end", n)
	}
	return nil
}
