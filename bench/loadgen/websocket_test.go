package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// unmasked returns the opcode and the content of a client's frame.
func unmasked(t *testing.T, frame []byte) (byte, []byte) {
	t.Helper()
	n, head := int(frame[1]&0x7f), 2
	switch n {
	case 126:
		n, head = int(binary.BigEndian.Uint16(frame[2:])), 4
	case 127:
		n, head = int(binary.BigEndian.Uint64(frame[2:])), 10
	}
	if frame[0]&wsFinal == 0 || frame[1]&wsMasked == 0 || len(frame) != head+4+n {
		t.Fatalf("frame of %d bytes begins with %x", len(frame), frame[:10])
	}
	out := make([]byte, n)
	for i := range out {
		out[i] = frame[head+4+i] ^ frame[head+i%4]
	}
	return frame[0] & 0xF, out
}

// memory is a connection that reads from one buffer and writes to another.
type memory struct {
	net.Conn
	out bytes.Buffer
}

func (m *memory) Write(b []byte) (int, error) { return m.out.Write(b) }

func TestWebsocketWritesMaskedMessages(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 1237, 65535, 65536} {
		m := &memory{}
		c, sent := &wsConn{Conn: m}, filler(1, n+headerLen)
		kept := bytes.Clone(sent)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		if opcode, got := unmasked(t, m.out.Bytes()); opcode != wsBinary || !bytes.Equal(got, kept) || !bytes.Equal(sent, kept) {
			t.Errorf("%d bytes: opcode %d, or other content, or the caller's bytes changed", n, opcode)
		}
	}
}

func TestWebsocketReadsMessagesAndAnswersPings(t *testing.T) {
	var in bytes.Buffer
	long := bytes.Repeat([]byte("x"), 300)
	in.Write([]byte{0x02, 2, 'a', 'b'})            // a message in two frames
	in.Write([]byte{0x89, 2, 'h', 'i'})            // a ping between them
	in.Write([]byte{0x80, 126, 0x01, 0x2c})        // the rest
	in.Write(long)                                 //
	in.Write([]byte{0x82, 0})                      // an empty message
	in.Write([]byte{0x88, 2, 0x03, 0xE8, 0x82, 0}) // close
	m := &memory{}
	c := &wsConn{Conn: m, br: bufio.NewReader(&in)}
	got, err := io.ReadAll(c)
	if err == nil || string(got) != "ab"+string(long) {
		t.Errorf("read %d bytes, then %v", len(got), err)
	}
	if opcode, body := unmasked(t, m.out.Bytes()); opcode != wsPong || string(body) != "hi" {
		t.Errorf("answered %d %q", opcode, body)
	}
}
