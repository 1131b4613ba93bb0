//go:build v1104

package main

import "tailscale.com/derp"

type payload = derp.LoanedBytes

func lend(b []byte) payload { return derp.LoanBytes(b) }
