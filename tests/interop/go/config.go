package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"tailscale.com/envknob"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The transports a relay is reached through.
const (
	modeHTTP  = "http"  // HTTP upgrade on plain TCP
	modeHTTPS = "https" // TLS; fast start if it is TLS 1.3
	modeWS    = "ws"    // websocket, over TLS if the URL is https
)

// The relays whose documented differences the scenarios know.
const (
	kindDerper      = "derper" // v1.102.3
	kindNewerDerper = "derper-v1.104.7"
	kindPyderp      = "pyderp"
)

type config struct {
	rawURL   string
	mode     string
	kind     string
	meshHex  string
	caFile   string
	pin      string
	insecure bool
	tls12    bool
	wsFull   bool
	stride   int
	clients  int
	seed     uint64
	verbose  bool

	url  *url.URL
	mesh key.DERPMesh // zero if the relay has no known mesh key
	root *x509.CertPool
	low  bool // make every peer a low one
}

func configFlags() *config {
	c := &config{}
	flag.StringVar(&c.rawURL, "url", "", "relay URL, e.g. http://127.0.0.1:3340/derp")
	flag.StringVar(&c.mode, "mode", "", "http, https or ws; default: the URL's scheme")
	flag.StringVar(&c.kind, "kind", kindPyderp, "derper, derper-v1.104.7 or pyderp: which documented differences to expect")
	flag.StringVar(&c.meshHex, "mesh-key", "", "the relay's mesh key, 64 hex digits")
	flag.StringVar(&c.caFile, "ca", "", "PEM file with the roots to trust")
	flag.StringVar(&c.pin, "pin", "", "sha256-raw:HEX; dial through a DERP region whose node carries it as CertName")
	flag.BoolVar(&c.insecure, "insecure", false, "do not verify the certificate")
	flag.BoolVar(&c.tls12, "tls12", false, "speak TLS 1.2, so no fast start")
	flag.BoolVar(&c.wsFull, "expect-ws-full", false, "expect every legal packet size to pass through websockets")
	flag.IntVar(&c.stride, "stride", 1, "everysize: step between sizes above the small ones")
	flag.IntVar(&c.clients, "clients", 100, "many: number of clients")
	flag.Uint64Var(&c.seed, "seed", 1, "seed of the random sizes and contents")
	flag.BoolVar(&c.verbose, "v", false, "let the upstream packages log to stderr")
	return c
}

// derper returns whether the relay is Go's, of either version.
func (c *config) derper() bool { return c.kind != kindPyderp }

// prepare checks the flags and sets the process up for the chosen transport.
func (c *config) prepare() (err error) {
	if c.url, err = url.Parse(c.rawURL); err != nil {
		return err
	}
	if c.mode == "" {
		c.mode = c.url.Scheme
	}
	wantScheme := map[string]string{modeHTTP: "http", modeHTTPS: "https", modeWS: c.url.Scheme}[c.mode]
	switch {
	case c.url.Scheme != "http" && c.url.Scheme != "https", wantScheme != c.url.Scheme:
		return fmt.Errorf("-mode %q does not fit -url %q", c.mode, c.rawURL)
	case c.url.Port() == "":
		return errors.New("-url needs a port")
	case c.kind != kindDerper && c.kind != kindNewerDerper && c.kind != kindPyderp:
		return fmt.Errorf("-kind is %q, not derper, derper-v1.104.7 or pyderp", c.kind)
	case c.mode == modeWS && c.pin != "":
		return errors.New("Go's websocket client knows no pins")
	case c.stride < 1:
		return errors.New("-stride must be positive")
	}
	if c.meshHex != "" {
		if c.mesh, err = key.ParseDERPMesh(c.meshHex); err != nil {
			return err
		}
	}
	if c.caFile != "" {
		pem, err := os.ReadFile(c.caFile)
		if err != nil {
			return err
		}
		c.root = x509.NewCertPool()
		if !c.root.AppendCertsFromPEM(pem) {
			return errors.New("-ca holds no certificate")
		}
	}
	if c.mode == modeWS {
		envknob.Setenv("TS_DEBUG_DERP_WS_CLIENT", "1")
		// derphttp dials websockets with the default HTTP client, and offers no other hook: this is the
		// only place where our roots and our recorder can be put under it.
		http.DefaultTransport = c.webTransport()
	}
	return nil
}

func (c *config) tls() bool { return c.url.Scheme == "https" }

// hostPort is where the relay listens. Only loopback is ever dialled, whatever name the certificate needs.
func (c *config) hostPort() string { return net.JoinHostPort("127.0.0.1", c.url.Port()) }

// viaRegion reports whether clients are made from a DERP region: pins and skipped verification exist
// only as fields of a map node.
func (c *config) viaRegion() bool {
	return c.tls() && (c.pin != "" || c.insecure) && c.mode == modeHTTPS
}

func (c *config) region() *tailcfg.DERPRegion {
	port, _ := strconv.Atoi(c.url.Port())
	return &tailcfg.DERPRegion{
		RegionID:   900,
		RegionCode: "test",
		Nodes: []*tailcfg.DERPNode{{
			Name:             "test",
			RegionID:         900,
			HostName:         c.url.Hostname(),
			IPv4:             "127.0.0.1",
			IPv6:             "none",
			DERPPort:         port,
			CertName:         c.pin,
			InsecureForTests: c.insecure,
		}},
	}
}

// tlsConfig is for the connections that the test makes itself.
func (c *config) tlsConfig() *tls.Config {
	conf := &tls.Config{ServerName: c.url.Hostname(), RootCAs: c.root, MinVersion: tls.VersionTLS12}
	if c.tls12 {
		conf.MaxVersion = tls.VersionTLS12
	}
	if c.insecure || c.pin != "" {
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = c.verifyPin
	}
	return conf
}

func (c *config) verifyPin(cs tls.ConnectionState) error {
	want, pinned := strings.CutPrefix(c.pin, "sha256-raw:")
	if !pinned {
		return nil
	}
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
	if hex.EncodeToString(sum[:]) != want {
		return errors.New("leaf certificate does not match the pin")
	}
	return nil
}

// clientTLSConfig is what an upstream client gets; it refuses one that skips verification.
func (c *config) clientTLSConfig() *tls.Config {
	conf := &tls.Config{RootCAs: c.root}
	if c.tls12 {
		conf.MaxVersion = tls.VersionTLS12
	}
	return conf
}

func dialTimeout() *net.Dialer { return &net.Dialer{Timeout: stepLimit, KeepAlive: 30 * time.Second} }
