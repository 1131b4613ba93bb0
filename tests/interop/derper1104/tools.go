//go:build tools

// Package tools imports what scripts/peers builds here, so that `go mod tidy -e` keeps what it needs in
// go.mod. The -e is for a test of a dependency: it imports a module that the proxy does not serve.
package tools

import _ "tailscale.com/cmd/derper"
