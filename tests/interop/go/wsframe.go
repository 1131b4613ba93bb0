package main

import (
	"bufio"
	"encoding/binary"
	"io"
)

// Websocket opcodes (RFC 6455, section 5.2).
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// wsHeader is a websocket frame header.
type wsHeader struct {
	complete bool // enough bytes were there
	fin      bool
	rsv      byte
	opcode   byte
	masked   bool
	length   uint64
}

// parseWSHeader reads a header, masking key included, from exactly the bytes given.
func parseWSHeader(b []byte) (h wsHeader) {
	if len(b) < 2 {
		return h
	}
	h.fin = b[0]&0x80 != 0
	h.rsv = b[0] >> 4 & 7
	h.opcode = b[0] & 15
	h.masked = b[1]&0x80 != 0
	size := 2
	h.length = uint64(b[1] & 0x7f)
	switch h.length {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if h.masked {
		size += 4
	}
	if len(b) < size {
		return h
	}
	switch h.length {
	case 126:
		h.length = uint64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		h.length = binary.BigEndian.Uint64(b[2:])
	}
	h.complete = true
	return h
}

// wsFrame is one frame as a hand-made client sends or receives it.
type wsFrame struct {
	fin     bool
	rsv     byte
	opcode  byte
	noMask  bool // sending only: break the rule that clients mask
	payload []byte
}

// encode packs a client frame. The masking key is fixed: nothing here needs a secret one.
func (f wsFrame) encode() []byte {
	b := []byte{f.opcode | f.rsv<<4, 0}
	if f.fin {
		b[0] |= 0x80
	}
	switch n := len(f.payload); {
	case n < 126:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if f.noMask {
		return append(b, f.payload...)
	}
	b[1] |= 0x80
	mask := [4]byte{0xa5, 0x5a, 0x0f, 0xf0}
	b = append(b, mask[:]...)
	for i, c := range f.payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// readWSFrame reads one server frame.
func readWSFrame(br *bufio.Reader) (f wsFrame, masked bool, err error) {
	var hdr []byte
	var h wsHeader
	for !h.complete {
		c, err := br.ReadByte()
		if err != nil {
			return f, false, err
		}
		hdr = append(hdr, c)
		h = parseWSHeader(hdr)
	}
	if h.length > 16<<20 {
		return f, h.masked, io.ErrShortBuffer
	}
	f = wsFrame{fin: h.fin, rsv: h.rsv, opcode: h.opcode, payload: make([]byte, h.length)}
	_, err = io.ReadFull(br, f.payload)
	return f, h.masked, err
}
