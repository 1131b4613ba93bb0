package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// iroh-relay's protocol is a descendant of DERP inside websockets: a binary message is one frame,
// a type and a body without a length. irohConn translates, so that the rest of this program sees
// DERP.
const (
	irohPath     = "/relay"
	irohProtocol = "iroh-relay-v2"

	irohChallenge = 0  // 16 bytes
	irohAuth      = 1  // public key 32, length of the signature 1, signature 64
	irohConfirms  = 2  // nothing
	irohSend      = 4  // destination 32, ECN 1, packet
	irohReceive   = 6  // source 32, ECN 1, packet
	irohPing      = 9  // 8 bytes
	irohPong      = 10 // 8 bytes

	irohSigned = "iroh-relay handshake v1 challenge signature"
)

// irohConn is a stream of DERP frames over a websocket that carries iroh's.
type irohConn struct {
	*wsConn
	message []byte // the last message that was read
	frame   []byte // the unread rest of the DERP frame that was made from it
	buf     []byte
}

// Write sends whole DERP frames, each as a message of its own.
func (c *irohConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = c.out[:0]
	for rest := b; len(rest) > 0; {
		t, n := derp.FrameType(rest[0]), int(binary.BigEndian.Uint32(rest[1:]))
		body := rest[derp.FrameHeaderLen : derp.FrameHeaderLen+n]
		rest = rest[derp.FrameHeaderLen+n:]
		switch t {
		case derp.FrameSendPacket:
			c.out = appendMessage(c.out, wsBinary, []byte{irohSend}, body[:keyLen], []byte{0}, body[keyLen:])
		case derp.FramePing:
			c.out = appendMessage(c.out, wsBinary, []byte{irohPing}, body)
		default:
			return 0, fmt.Errorf("iroh-relay has no frame 0x%02x", byte(t))
		}
	}
	if _, err := c.Conn.Write(c.out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (c *irohConn) Read(b []byte) (int, error) {
	for len(c.frame) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, c.frame)
	c.frame = c.frame[n:]
	return n, nil
}

// next reads a message, and makes a DERP frame of it if DERP has such a frame.
func (c *irohConn) next() error {
	if err := c.readMessage(); err != nil {
		return err
	}
	switch body := c.message[1:]; c.message[0] {
	case irohReceive:
		if len(body) <= keyLen {
			return fmt.Errorf("iroh-relay sent a packet of %d bytes", len(body))
		}
		c.buf = binary.BigEndian.AppendUint32(append(c.buf[:0], byte(derp.FrameRecvPacket)), uint32(len(body)-1))
		c.buf = append(append(c.buf, body[:keyLen]...), body[keyLen+1:]...)
		c.frame = c.buf
	case irohPong:
		c.buf = binary.BigEndian.AppendUint32(append(c.buf[:0], byte(derp.FramePong)), uint32(len(body)))
		c.buf = append(c.buf, body...)
		c.frame = c.buf
	case irohPing:
		return c.writeFrame(wsBinary, append([]byte{irohPong}, body...))
	}
	return nil
}

func (c *irohConn) readMessage() error {
	for c.left == 0 {
		if err := c.nextFrame(); err != nil {
			return err
		}
	}
	n := int(c.left)
	if n > maxPayload+100 {
		return fmt.Errorf("message of %d bytes", n)
	}
	if cap(c.message) < n {
		c.message = make([]byte, n, 2*n)
	}
	c.message = c.message[:n]
	c.left = 0
	_, err := io.ReadFull(c.br, c.message)
	return err
}

// login answers the relay's challenge with a fresh key, which it returns.
func (c *irohConn) login() (pub key.NodePublic, err error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return pub, err
	}
	if err := c.readMessage(); err != nil {
		return pub, err
	}
	if c.message[0] != irohChallenge || len(c.message) != 17 {
		return pub, fmt.Errorf("iroh-relay began with %x", c.message)
	}
	signed := deriveKey(irohSigned, c.message[1:])
	signature := ed25519.Sign(private, signed[:])
	auth := bytes.Join([][]byte{{irohAuth}, public, {byte(len(signature))}, signature}, nil)
	if err := c.writeFrame(wsBinary, auth); err != nil {
		return pub, err
	}
	if err := c.readMessage(); err != nil {
		return pub, err
	}
	if c.message[0] != irohConfirms {
		return pub, fmt.Errorf("iroh-relay refused the login: %q", c.message)
	}
	return key.NodePublicFromRaw32(mem.B(public)), nil
}

// BLAKE3, as far as the login needs it: key derivation from short inputs.
const (
	blakeChunkStart = 1 << 0
	blakeChunkEnd   = 1 << 1
	blakeRoot       = 1 << 3
	blakeContext    = 1 << 5
	blakeMaterial   = 1 << 6
)

var (
	blakeIV = [8]uint32{
		0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
	}
	blakeOrder = [16]int{2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8}
)

// deriveKey is BLAKE3's derive_key for a context and a material of at most 64 bytes each.
func deriveKey(context string, material []byte) [32]byte {
	inner := blakeBlock(blakeIV, []byte(context), blakeContext)
	out := blakeBlock(inner, material, blakeMaterial)
	var b [32]byte
	for i, w := range out {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	return b
}

// blakeBlock hashes an input of one block.
func blakeBlock(h [8]uint32, input []byte, flags uint32) (out [8]uint32) {
	var block [64]byte
	n := copy(block[:], input)
	var m [16]uint32
	for i := range m {
		m[i] = binary.LittleEndian.Uint32(block[4*i:])
	}
	flags |= blakeChunkStart | blakeChunkEnd | blakeRoot
	v := [16]uint32{
		h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7],
		blakeIV[0], blakeIV[1], blakeIV[2], blakeIV[3], 0, 0, uint32(n), flags,
	}
	mix := func(a, b, c, d int, x, y uint32) {
		v[a] += v[b] + x
		v[d] = bits.RotateLeft32(v[d]^v[a], -16)
		v[c] += v[d]
		v[b] = bits.RotateLeft32(v[b]^v[c], -12)
		v[a] += v[b] + y
		v[d] = bits.RotateLeft32(v[d]^v[a], -8)
		v[c] += v[d]
		v[b] = bits.RotateLeft32(v[b]^v[c], -7)
	}
	for range 7 {
		for i := range 4 {
			mix(i, 4+i, 8+i, 12+i, m[2*i], m[2*i+1])
		}
		for i := range 4 {
			mix(i, 4+(i+1)%4, 8+(i+2)%4, 12+(i+3)%4, m[8+2*i], m[9+2*i])
		}
		var next [16]uint32
		for i, from := range blakeOrder {
			next[i] = m[from]
		}
		m = next
	}
	for i := range out {
		out[i] = v[i] ^ v[i+8]
	}
	return out
}
