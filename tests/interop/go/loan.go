//go:build !v1104

package main

// payload is what ForwardPacket takes: it has a type of its own since Tailscale v1.104 (loan_v1104.go).
type payload = []byte

func lend(b []byte) payload { return b }
