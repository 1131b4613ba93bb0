package main

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	loginTimeout  = 30 * time.Second // for TCP, TLS, upgrade and login together
	packetReadBuf = 256 << 10        // connections that carry packets
	idleReadBuf   = 4 << 10          // connections that do not
	maxPayload    = derp.MaxPacketSize
)

// conn is a logged-in DERP client connection.
type conn struct {
	nc  net.Conn // the stream to write to: with TLS or a websocket, if the run has them
	raw net.Conn // the TCP connection
	tls *tls.Conn
	br  *bufio.Reader
	pub key.NodePublic
}

// dial connects, upgrades and logs in with a fresh key, and reads the relay's ServerInfo, so
// the relay has done all its login work when dial returns.
func dial(cfg *config, readBuf int) (*conn, error) {
	nc, err := net.DialTimeout("tcp", cfg.addr, loginTimeout)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(loginTimeout))
	c, err := login(cfg, nc, readBuf)
	if err != nil {
		nc.Close()
		return nil, err
	}
	nc.SetDeadline(time.Time{})
	return c, nil
}

func login(cfg *config, nc net.Conn, readBuf int) (*conn, error) {
	raw := nc
	nc, secure, err := secured(cfg, nc)
	if err != nil {
		return nil, err
	}
	nc, br, err := upgrade(cfg, nc, readBuf)
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	if iroh, ok := nc.(*irohConn); ok {
		pub, err := iroh.login()
		if err != nil {
			return nil, err
		}
		return &conn{nc: nc, raw: raw, tls: secure, br: br, pub: pub}, nil
	}
	bw := bufio.NewWriter(nc)
	priv := key.NewNode()
	client, err := derp.NewClient(priv, nc, bufio.NewReadWriter(br, bw), log.Printf)
	if err != nil {
		return nil, err
	}
	n, err := derp.ReadFrameTypeHeader(br, derp.FrameServerInfo)
	if err != nil {
		return nil, fmt.Errorf("ServerInfo: %w", err)
	}
	if n > 4<<10 {
		return nil, fmt.Errorf("ServerInfo of %d bytes", n)
	}
	box := make([]byte, n)
	if _, err := io.ReadFull(br, box); err != nil {
		return nil, fmt.Errorf("ServerInfo: %w", err)
	}
	if _, ok := priv.OpenFrom(client.ServerPublicKey(), box); !ok {
		return nil, fmt.Errorf("ServerInfo: the box does not open")
	}
	return &conn{nc: nc, raw: raw, tls: secure, br: br, pub: priv.Public()}, nil
}

// secured returns the connection with TLS, if the run has TLS.
func secured(cfg *config, nc net.Conn) (net.Conn, *tls.Conn, error) {
	if !cfg.tls {
		return nc, nil, nil
	}
	host, _, err := net.SplitHostPort(cfg.addr)
	if err != nil {
		return nil, nil, err
	}
	// No session cache: every handshake is a full one.
	secure := tls.Client(nc, &tls.Config{
		InsecureSkipVerify: true,
		ServerName:         cmp.Or(cfg.sni, host),
		MinVersion:         tls.VersionTLS13,
	})
	return secure, secure, secure.Handshake()
}

// upgrade asks for DERP, in a websocket or not, and returns the stream that carries it.
func upgrade(cfg *config, nc net.Conn, readBuf int) (net.Conn, *bufio.Reader, error) {
	br := bufio.NewReaderSize(nc, readBuf)
	host := cmp.Or(cfg.sni, cfg.addr)
	request := "GET /derp HTTP/1.1\r\nHost: " + host + "\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"
	path, protocol := "/derp", "derp"
	if cfg.iroh {
		path, protocol = irohPath, irohProtocol
	}
	if cfg.ws || cfg.iroh {
		request = wsRequest(path, host, protocol)
	}
	if _, err := io.WriteString(nc, request); err != nil {
		return nil, nil, err
	}
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		return nil, nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, nil, fmt.Errorf("status %s", res.Status)
	}
	if !cfg.ws && !cfg.iroh {
		return nc, br, nil
	}
	if err := wsAccepted(res, protocol); err != nil {
		return nil, nil, err
	}
	ws := &wsConn{Conn: nc, br: br}
	if cfg.iroh {
		iroh := &irohConn{wsConn: ws}
		return iroh, bufio.NewReaderSize(iroh, readBuf), nil
	}
	return ws, bufio.NewReaderSize(ws, readBuf), nil
}

// dialMany opens n connections, at most cfg.parallel of them at the same time.
func dialMany(cfg *config, n, readBuf int) ([]*conn, error) {
	conns, errs := make([]*conn, n), make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, cfg.parallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conns[i], errs[i] = dial(cfg, readBuf)
		})
	}
	wg.Wait()
	failed, first := 0, error(nil)
	for _, err := range errs {
		if err != nil {
			failed++
			first = cmp.Or(first, err)
		}
	}
	if failed > 0 {
		return nil, fmt.Errorf("%d of %d connections failed; the first: %w", failed, n, first)
	}
	return conns, nil
}

// readFrames calls f with each frame until the connection ends or f fails. The body is only
// valid during the call: it lies in the read buffer, so nothing is copied.
func (c *conn) readFrames(f func(t derp.FrameType, body []byte) error) error {
	for {
		head, err := c.br.Peek(derp.FrameHeaderLen)
		if err != nil {
			return err
		}
		t, n := derp.FrameType(head[0]), binary.BigEndian.Uint32(head[1:])
		if n > uint32(c.br.Size()-derp.FrameHeaderLen) {
			return fmt.Errorf("frame type 0x%02x of %d bytes", byte(t), n)
		}
		frame, err := c.br.Peek(derp.FrameHeaderLen + int(n))
		if err != nil {
			return err
		}
		if err := f(t, frame[derp.FrameHeaderLen:]); err != nil {
			return err
		}
		c.br.Discard(len(frame))
	}
}

// ping makes sure that the connection is alive in both directions.
func (c *conn) ping() error {
	c.nc.SetDeadline(time.Now().Add(loginTimeout))
	frame := binary.BigEndian.AppendUint32([]byte{byte(derp.FramePing)}, 8)
	frame = append(frame, "loadgen!"...)
	if _, err := c.nc.Write(frame); err != nil {
		return err
	}
	err := c.readFrames(func(t derp.FrameType, body []byte) error {
		if t != derp.FramePong {
			return nil // a keepalive
		}
		if string(body) != "loadgen!" {
			return fmt.Errorf("pong with a wrong body")
		}
		return errDone
	})
	if err != errDone {
		return err
	}
	return nil
}

// describeTLS reports what was negotiated: CPU figures of two relays can only be compared if it is
// the same.
func (c *conn) describeTLS(out report) {
	if c.tls == nil {
		return
	}
	s := c.tls.ConnectionState()
	out["tls_version"] = tls.VersionName(s.Version)
	out["tls_cipher"] = tls.CipherSuiteName(s.CipherSuite)
	out["tls_key_exchange"] = s.CurveID.String()
}
