package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"testing"

	"tailscale.com/derp"
)

func TestDeriveKeyIsBlake3(t *testing.T) {
	// Of BLAKE3's own test vectors: its context, an input of one byte 0.
	got := deriveKey("BLAKE3 2019-12-27 16:29:52 test vectors context", []byte{0})
	if want := "b3e2e340a117a499c6cf2398a19ee0d29cca2bb7404c73063382693bf66cb06c"; hex.EncodeToString(got[:]) != want {
		t.Errorf("%x", got)
	}
}

func TestIrohConnTranslates(t *testing.T) {
	tr, keys := newTestTraffic(100)
	m := &memory{}
	var in bytes.Buffer
	c := &irohConn{wsConn: &wsConn{Conn: m, br: bufio.NewReader(&in)}}
	frame := appendFrame(nil, keys[1], 0, 1, tr.fills[0])
	if _, err := c.Write(bytes.Repeat(frame, 2)); err != nil {
		t.Fatal(err)
	}
	sent := m.out.Bytes()
	_, body := unmasked(t, sent[:len(sent)/2])
	packet := frame[offPayload:]
	if body[0] != irohSend || !bytes.Equal(body[1:33], frame[5:37]) || body[33] != 0 || !bytes.Equal(body[34:], packet) {
		t.Errorf("sent %x", body[:40])
	}
	message := bytes.Join([][]byte{{irohReceive}, tr.keys[0], {0}, packet}, nil)
	in.Write([]byte{0x82, 126, 0, byte(len(message))})
	in.Write(message)
	x := &conn{nc: c, br: bufio.NewReader(c)}
	seen := 0
	x.readFrames(func(ft derp.FrameType, body []byte) error {
		seen++
		if ft != derp.FrameRecvPacket || !bytes.Equal(body, append(bytes.Clone(tr.keys[0]), packet...)) {
			t.Errorf("read %v %x", ft, body[:40])
		}
		return errDone
	})
	if seen != 1 {
		t.Errorf("%d frames", seen)
	}
}
