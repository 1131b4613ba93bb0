module gowsconn

go 1.26.6

require (
	github.com/coder/websocket v1.8.14
	tailscale.com v1.102.3
)

require golang.org/x/sys v0.47.0 // indirect
