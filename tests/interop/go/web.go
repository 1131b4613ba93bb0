package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("upgrade", "the 101 head to the byte, odd but accepted requests, bytes sent ahead of the answer", upgrade)
	register("faststart", "with Derp-Fast-Start the first byte is DERP's", fastStart)
	register("httpanswers", "426, probes, generate_204, robots.txt, unknown paths", httpAnswers)
}

// raw is a connection on which the test writes HTTP by hand.
type raw struct {
	r  *run
	nc net.Conn
	br *bufio.Reader
}

// raw connects; the connection is closed, whatever it waits for, when the step limit is over.
func (r *run) raw() *raw {
	nc, _, err := r.cfg.dialRaw(r.ctx)
	r.must(err, "dial")
	r.onClose(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(stepLimit))
	return &raw{r, nc, bufio.NewReader(nc)}
}

func (w *raw) write(b []byte) {
	_, err := w.nc.Write(b)
	w.r.must(err, "write")
}

// head packs a request. A method "GET" stands for "GET <path> HTTP/1.1".
func head(line string, headers ...string) []byte {
	return []byte(line + "\r\n" + strings.Join(append(headers, "", ""), "\r\n"))
}

// line puts a request line together for the path under which the relay is mounted.
func (r *run) line(method, version string) string {
	return fmt.Sprintf("%s %s HTTP/%s", method, r.cfg.url.RequestURI(), version)
}

// readHead returns the response head as it came, blank line included.
func (w *raw) readHead() string {
	var b strings.Builder
	for {
		l, err := w.br.ReadString('\n')
		b.WriteString(l)
		w.r.must(err, "response head after %q", b.String())
		if l == "\r\n" {
			return b.String()
		}
	}
}

func (w *raw) readN(n int) []byte {
	b := make([]byte, n)
	_, err := io.ReadFull(w.br, b)
	w.r.must(err, "read")
	return b
}

// greeting is the 45 bytes of the ServerKey frame.
func greeting(server key.NodePublic) []byte {
	return frame(derp.FrameServerKey, []byte(derp.Magic), server.AppendTo(nil))
}

// response sends a request on a connection of its own and reads the whole answer.
func (r *run) response(method string, request []byte) (*http.Response, string) {
	w := r.raw()
	w.write(request)
	req := &http.Request{Method: method}
	res, err := http.ReadResponse(w.br, req)
	r.must(err, "response")
	body, err := io.ReadAll(res.Body)
	r.must(err, "body")
	w.nc.Close()
	return res, string(body)
}

const host = "Host: relay.test"

// relayKey learns the relay's key from an ordinary client.
func (r *run) relayKey() key.NodePublic {
	s, err := r.cfg.plain().dialStream(r.ctx, "")
	r.must(err, "dial")
	defer s.nc.Close()
	server, err := s.serverKey()
	r.must(err, "greeting")
	return server
}

func (r *run) wantLogin(w *raw, priv key.NodePrivate, server key.NodePublic) {
	s := &stream{nc: w.nc, br: w.br}
	t, b, err := s.readFrame(stepLimit)
	r.must(err, "ServerInfo")
	info, ok := priv.OpenFrom(server, b)
	r.check(t == derp.FrameServerInfo && ok, "got frame %#02x with %d bytes, want ServerInfo", byte(t), len(b))
	r.check(string(info) == `{"version":2}`, "ServerInfo is %s", info)
}

func upgrade(r *run) {
	server := r.relayKey()
	want := "HTTP/1.1 101 Switching Protocols\r\n" +
		"Upgrade: DERP\r\n" +
		"Connection: Upgrade\r\n" +
		"Derp-Version: 2\r\n" +
		"Derp-Public-Key: " + server.UntypedHexString() + "\r\n\r\n"
	get := r.line("GET", "1.1")
	for _, c := range []struct {
		name string
		req  []byte
	}{
		{"as Go's client", head(get, host, "User-Agent: x", "Connection: Upgrade", "Upgrade: DERP")},
		{"lower case", head(get, "host: x", "connection: upgrade", "upgrade: derp")},
		{"mixed case", head(get, host, "Connection: Upgrade", "UPGRADE: dErP")},
		{"with a query", head(strings.Replace(get, " HTTP", "?a=b HTTP", 1), host, "Connection: Upgrade", "Upgrade: DERP")},
		{"no Connection header", head(get, host, "Upgrade: DERP")},
		{"POST", head(r.line("POST", "1.1"), host, "Connection: Upgrade", "Upgrade: DERP", "Content-Length: 0")},
		{"odd method", head(r.line("BREW", "1.1"), host, "Connection: Upgrade", "Upgrade: DERP")},
		{"HTTP/1.0", head(r.line("GET", "1.0"), "Connection: Upgrade", "Upgrade: DERP")},
		{"HTTP/1.0 without anything else", head(r.line("GET", "1.0"), "Upgrade: DERP")},
		{"websocket without the subprotocol", head(get, host, "Connection: Upgrade", "Upgrade: WebSocket")},
		{"websocket with another subprotocol", head(get, host, "Connection: Upgrade", "Upgrade: websocket",
			"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: chat")},
		{"fast start not exactly 1", head(get, host, "Connection: Upgrade", "Upgrade: DERP", "Derp-Fast-Start: true")},
		{"fast start 0", head(get, host, "Connection: Upgrade", "Upgrade: DERP", "Derp-Fast-Start: 0")},
	} {
		r.at("%s", c.name)
		w := r.raw()
		w.write(c.req)
		got := w.readHead()
		r.check(got == want, "head is\n%q, want\n%q", got, want)
		r.must(sameBytes(w.readN(45), greeting(server)), "greeting")
		priv := key.NewNode()
		w.write(clientInfo(priv, server, ordinaryInfo))
		r.wantLogin(w, priv, server)
		w.nc.Close()
	}

	r.at("login and a packet in one write with the request")
	w := r.raw()
	priv := key.NewNode()
	data := r.bytes(100)
	all := head(get, host, "Connection: Upgrade", "Upgrade: DERP")
	all = append(all, clientInfo(priv, server, ordinaryInfo)...)
	all = append(all, frame(derp.FrameSendPacket, priv.Public().AppendTo(nil), data)...)
	w.write(all)
	r.check(w.readHead() == want, "head differs")
	w.readN(45)
	r.wantLogin(w, priv, server)
	r.must(sameBytes(w.readN(5+32+100), frame(derp.FrameRecvPacket, priv.Public().AppendTo(nil), data)), "packet")

	info := clientInfo(priv, server, ordinaryInfo)
	for _, fast := range []bool{false, true} {
		for _, cut := range []int{1, 4, 5, 6, 37, len(info) - 1} {
			r.at("the first %d bytes of the login in one write with the request, fast start %v", cut, fast)
			w, headers := r.raw(), []string{host, "Connection: Upgrade", "Upgrade: DERP"}
			if fast {
				headers = append(headers, "Derp-Fast-Start: 1")
			}
			w.write(append(head(get, headers...), info[:cut]...))
			if !fast {
				r.check(w.readHead() == want, "head differs")
			}
			r.must(sameBytes(w.readN(45), greeting(server)), "greeting")
			w.write(info[cut:])
			r.wantLogin(w, priv, server)
			w.nc.Close()
		}
	}

	r.at("byte by byte")
	w, priv = r.raw(), key.NewNode()
	for _, c := range append(head(get, host, "Connection: Upgrade", "Upgrade: DERP"), clientInfo(priv, server, ordinaryInfo)...) {
		w.write([]byte{c})
	}
	r.check(w.readHead() == want, "head differs")
	w.readN(45)
	r.wantLogin(w, priv, server)
}

func fastStart(r *run) {
	server := r.relayKey()
	for _, headers := range [][]string{
		{host, "Connection: Upgrade", "Derp-Fast-Start: 1", "Upgrade: DERP"},
		{host, "upgrade: derp", "derp-fast-start: 1"},
	} {
		r.at("%v", headers)
		w, priv := r.raw(), key.NewNode()
		w.write(append(head(r.line("GET", "1.1"), headers...), clientInfo(priv, server, ordinaryInfo)...))
		r.must(sameBytes(w.readN(45), greeting(server)), "first bytes")
		r.wantLogin(w, priv, server)

		r.at("%v, login only after the greeting", headers)
		w, priv = r.raw(), key.NewNode()
		w.write(head(r.line("GET", "1.1"), headers...))
		r.must(sameBytes(w.readN(45), greeting(server)), "first bytes")
		w.write(clientInfo(priv, server, ordinaryInfo))
		r.wantLogin(w, priv, server)
	}
}

func httpAnswers(r *run) {
	const text = "text/plain; charset=utf-8"
	get := r.line("GET", "1.1")
	ask := func(name, method string, request []byte, status int) (*http.Response, string) {
		r.at("%s", name)
		res, body := r.response(method, request)
		r.check(res.StatusCode == status, "status %d, want %d", res.StatusCode, status)
		return res, body
	}
	for _, headers := range [][]string{nil, {"Upgrade: foo", "Connection: Upgrade"}, {"Upgrade: derp, websocket"}, {"Upgrade:"}} {
		res, body := ask(fmt.Sprintf("no upgrade %v", headers), "GET", head(get, append(headers, host)...), 426)
		r.check(body == "DERP requires connection upgrade\n", "body is %q", body)
		r.check(res.Header.Get("Content-Type") == text, "Content-Type is %q", res.Header.Get("Content-Type"))
		r.check(res.Header.Get("X-Content-Type-Options") == "nosniff", "no nosniff")
	}
	for _, path := range []string{"/derp/probe", "/derp/latency-check"} {
		for _, method := range []string{"GET", "HEAD"} {
			res, body := ask(method+" "+path, method, head(method+" "+path+" HTTP/1.1", host), 200)
			r.check(body == "" && res.Header.Get("Access-Control-Allow-Origin") == "*", "body %q, headers %v", body, res.Header)
		}
		for _, method := range []string{"POST", "OPTIONS", "PUT"} {
			res, body := ask(method+" "+path, method, head(method+" "+path+" HTTP/1.1", host, "Content-Length: 0"), 405)
			r.check(body == "bogus probe method\n", "body is %q", body)
			r.check(res.Header.Get("Access-Control-Allow-Origin") == "", "CORS on a refusal")
		}
	}
	r.generate204()
	res, body := ask("robots", "GET", head("GET /robots.txt HTTP/1.1", host), 200)
	r.check(body == "User-agent: *\nDisallow: /\n", "body is %q", body)
	r.check(strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain"), "Content-Type is %q", res.Header.Get("Content-Type"))
	res, body = ask("home", "GET", head("GET / HTTP/1.1", host), 200)
	r.check(strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") && body != "", "no home page")

	// Documented difference: derper answers every unknown path with its home page.
	unknown := 404
	if r.cfg.derper() {
		unknown = 200
	}
	for _, path := range []string{"/derp/", "/derp/foo", "/nothing", "/favicon.ico"} {
		ask(path, "GET", head("GET "+path+" HTTP/1.1", host), unknown)
		// An upgrade is taken at the exact path only.
		ask(path+" upgraded", "GET", head("GET "+path+" HTTP/1.1", host, "Connection: Upgrade", "Upgrade: DERP"), unknown)
	}

	r.at("two requests on one connection, then an upgrade")
	server := r.relayKey()
	w := r.raw()
	for range 2 {
		w.write(head("GET /derp/probe HTTP/1.1", host))
		res, err := http.ReadResponse(w.br, nil)
		r.must(err, "response")
		r.check(res.StatusCode == 200, "status %d", res.StatusCode)
		_, err = io.Copy(io.Discard, res.Body)
		r.must(err, "body")
	}
	w.write(head(get, host, "Connection: Upgrade", "Upgrade: DERP"))
	r.check(strings.HasPrefix(w.readHead(), "HTTP/1.1 101 "), "no upgrade on a used connection")
	r.must(sameBytes(w.readN(45), greeting(server)), "greeting")

	for _, junk := range []string{"\x00\x01\x02\r\n\r\n", "GET\r\n\r\n", "GET /derp\r\n\r\n", "GET /derp HTTP/1.1\r\nbad header\r\n\r\n"} {
		r.at("junk %q", junk)
		w := r.raw()
		w.write([]byte(junk))
		res, err := http.ReadResponse(w.br, nil)
		r.check(err == nil && res.StatusCode == 400 || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF),
			"got %v, %v; want a 400 or the end", res, err)
	}
}

func (r *run) generate204() {
	const name = "X-Tailscale-Challenge: "
	long := strings.Repeat("x", 64)
	for _, c := range []struct{ challenge, answer string }{
		{"", ""},
		{name + "input", "response input"},
		{name + "ts_derp99b.tailscale.com", "response ts_derp99b.tailscale.com"},
		{name + "a:B-9_.", "response a:B-9_."},
		{name + long, "response " + long},
		{name + long + "x", ""},
		{name + "foo bar", ""},
		{name + "foo/bar", ""},
		{name + "caf\u00e9", ""},
		{name, ""},
	} {
		r.at("generate_204 with %q", c.challenge)
		headers := []string{host}
		if c.challenge != "" {
			headers = append(headers, c.challenge)
		}
		res, body := r.response("GET", head("GET /generate_204 HTTP/1.1", headers...))
		r.check(res.StatusCode == 204 && body == "", "status %d, body %q", res.StatusCode, body)
		r.check(res.Header.Get("X-Tailscale-Response") == c.answer, "response is %q", res.Header.Get("X-Tailscale-Response"))
		_, present := res.Header["X-Tailscale-Response"]
		r.check(present == (c.answer != ""), "response header present: %v", present)
		want := "no-cache, no-store, must-revalidate, no-transform, max-age=0"
		r.check(res.Header.Get("Cache-Control") == want, "Cache-Control is %q", res.Header.Get("Cache-Control"))
	}
}
