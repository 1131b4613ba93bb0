package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
)

const (
	wsGUID   = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
	wsKey    = "bG9hZGdlbiBsb2FkZ2VuIQ==" // 16 bytes; the relay only hashes it
	wsBinary = 0x2
	wsClose  = 0x8
	wsPing   = 0x9
	wsPong   = 0xA
	wsFinal  = 0x80
	wsMasked = 0x80
)

// wsRequest asks for a websocket that carries DERP.
func wsRequest(path, host, protocol string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nUpgrade: websocket\r\n" +
		"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + wsKey +
		"\r\nSec-WebSocket-Protocol: " + protocol + "\r\n\r\n"
}

// wsAccepted checks the relay's answer.
func wsAccepted(res *http.Response, protocol string) error {
	sum := sha1.Sum([]byte(wsKey + wsGUID))
	if got := res.Header.Get("Sec-WebSocket-Accept"); got != base64.StdEncoding.EncodeToString(sum[:]) {
		return fmt.Errorf("Sec-WebSocket-Accept is %q", got)
	}
	if got := res.Header.Get("Sec-WebSocket-Protocol"); got != protocol {
		return fmt.Errorf("the subprotocol is %q", got)
	}
	if got := res.Header.Get("Sec-WebSocket-Extensions"); got != "" {
		return fmt.Errorf("extension %q was not asked for", got)
	}
	return nil
}

// wsConn is a client's websocket as a stream: each Write is one masked binary message, Read
// returns the content of messages in order. One goroutine reads.
type wsConn struct {
	net.Conn
	br   *bufio.Reader
	left uint64 // unread bytes of the current message

	mu  sync.Mutex // pongs are written while the reader reads
	out []byte
}

func (c *wsConn) Write(b []byte) (int, error) {
	if err := c.writeFrame(wsBinary, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *wsConn) writeFrame(opcode byte, b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = appendMessage(c.out[:0], opcode, b)
	_, err := c.Conn.Write(c.out)
	return err
}

// appendMessage appends a masked frame with the parts as its content.
func appendMessage(out []byte, opcode byte, parts ...[]byte) []byte {
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	out = append(out, wsFinal|opcode)
	switch {
	case total < 126:
		out = append(out, wsMasked|byte(total))
	case total < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, wsMasked|126), uint16(total))
	default:
		out = binary.BigEndian.AppendUint64(append(out, wsMasked|127), uint64(total))
	}
	mask := rand.Uint32()
	out = binary.LittleEndian.AppendUint32(out, mask)
	begin := len(out)
	for _, p := range parts {
		out = append(out, p...)
	}
	maskBytes(out[begin:], mask)
	return out
}

// maskBytes masks or unmasks b, whose first byte is the first of the message.
func maskBytes(b []byte, mask uint32) {
	wide := uint64(mask)<<32 | uint64(mask)
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
	}
	for i := range b {
		b[i] ^= byte(mask >> (8 * (i % 4)))
	}
}

func (c *wsConn) Read(b []byte) (int, error) {
	for c.left == 0 {
		if err := c.nextFrame(); err != nil {
			return 0, err
		}
	}
	n, err := c.br.Read(b[:min(uint64(len(b)), c.left)])
	c.left -= uint64(n)
	return n, err
}

// nextFrame reads a frame's header, and all of a control frame.
func (c *wsConn) nextFrame() error {
	var head [8]byte
	if _, err := io.ReadFull(c.br, head[:2]); err != nil {
		return err
	}
	opcode, n := head[0]&0xF, uint64(head[1])
	if head[0]&0x70 != 0 || n >= wsMasked {
		return fmt.Errorf("websocket frame of the relay begins with %x", head[:2])
	}
	switch n {
	case 126:
		if _, err := io.ReadFull(c.br, head[:2]); err != nil {
			return err
		}
		n = uint64(binary.BigEndian.Uint16(head[:]))
	case 127:
		if _, err := io.ReadFull(c.br, head[:]); err != nil {
			return err
		}
		n = binary.BigEndian.Uint64(head[:])
	}
	if opcode < wsClose { // data, or more of it
		c.left = n
		return nil
	}
	body := make([]byte, min(n, 125))
	if _, err := io.ReadFull(c.br, body); err != nil {
		return err
	}
	switch opcode {
	case wsPing:
		return c.writeFrame(wsPong, body)
	case wsClose:
		return fmt.Errorf("the relay closed the websocket: %q", body)
	}
	return nil
}
