package main

import (
	"fmt"
	"strings"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func init() {
	register("login", "ClientInfo texts that are accepted, and the ServerInfo that answers", goodLogin)
	register("badlogin", "a faulty ClientInfo ends the connection without another byte", badLogin)
	register("mutelogin", "a silent client is dropped after about ten seconds", muteLogin)
}

func goodLogin(r *run) {
	known := strings.Repeat("0f", 32)
	texts := []string{
		ordinaryInfo,
		`{}`,
		`null`,
		`{"version":2}`,
		`{"version":99,"CanAckPings":false}`,
		`{"Version":2,"CANACKPINGS":true,"isprober":true}`,
		`{"version":2,"unknown":[1,{"x":null}],"AppName":"test"}`,
		` { "version" : 2 } `,
		`{"meshKey":"` + known + `","version":2}`, // well-formed but wrong: an ordinary client
		`{"meshKey":"` + strings.ToUpper(known) + `"}`,
		`{"MESHKEY":"` + known + `"}`,
		`{"version":2,"pad":"` + strings.Repeat("x", 60000) + `"}`,
		// The last byte that a ClientInfo may have: 32 of key, 24 of nonce, 16 of tag.
		`{"x":"` + "\xff" + `","y":"\ud800","` + "\xfe" + `":1}`,
		`{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`,
		`{"x":` + strings.Repeat("9", 5000) + `,"y":1e999}`,
		`{"version":2,"version":null}`,
		`{"AppName":"` + strings.Repeat("x", 32) + `"}`,
		`{"pad":"` + strings.Repeat("x", 256<<10-32-24-16-len(`{"pad":""}`)) + `"}`,
	}
	for _, text := range texts {
		r.at("%.60s", text)
		s := r.stream()
		info, err := s.login(key.NewNode(), text)
		r.must(err, "login")
		r.check(info == `{"version":2}`, "ServerInfo is %s", info)
		s.nc.Close()
	}
	r.fact("cases", len(texts))
}

func badLogin(r *run) {
	bystander := r.peer("bystander", peerOpts{})
	mesh := strings.Repeat("0f", 32)
	text := func(t string) func(key.NodePrivate, key.NodePublic) []byte {
		return func(priv key.NodePrivate, server key.NodePublic) []byte { return clientInfo(priv, server, t) }
	}
	body := func(t derp.FrameType, n int) func(key.NodePrivate, key.NodePublic) []byte {
		return func(priv key.NodePrivate, _ key.NodePublic) []byte {
			b := make([]byte, n)
			copy(b, priv.Public().AppendTo(nil))
			return frame(t, b)
		}
	}
	cases := []struct {
		name string
		make func(key.NodePrivate, key.NodePublic) []byte
	}{
		{"another frame type", func(_ key.NodePrivate, server key.NodePublic) []byte {
			return frame(derp.FrameSendPacket, server.AppendTo(nil), make([]byte, 100))
		}},
		{"an unknown frame type", func(priv key.NodePrivate, server key.NodePublic) []byte {
			return append(frame(0x7f, []byte("x")), clientInfo(priv, server, ordinaryInfo)...)
		}},
		{"empty", body(derp.FrameClientInfo, 0)},
		{"55 bytes", body(derp.FrameClientInfo, 55)},
		{"56 bytes", body(derp.FrameClientInfo, 56)},
		{"71 bytes", body(derp.FrameClientInfo, 71)},
		{"262145 bytes announced", func(key.NodePrivate, key.NodePublic) []byte {
			return frameHeader(derp.FrameClientInfo, 256<<10+1)
		}},
		{"4 GiB announced", func(key.NodePrivate, key.NodePublic) []byte {
			return frameHeader(derp.FrameClientInfo, 1<<32-1)
		}},
		{"box for another server", func(priv key.NodePrivate, _ key.NodePublic) []byte {
			return clientInfo(priv, key.NewNode().Public(), ordinaryInfo)
		}},
		{"box of another client", func(priv key.NodePrivate, server key.NodePublic) []byte {
			return frame(derp.FrameClientInfo, key.NewNode().Public().AppendTo(nil),
				priv.SealTo(server, []byte(ordinaryInfo)))
		}},
		{"flipped bit in the box", func(priv key.NodePrivate, server key.NodePublic) []byte {
			b := clientInfo(priv, server, ordinaryInfo)
			b[len(b)-1] ^= 1
			return b
		}},
		// derper panics here and its HTTP layer drops the connection: the same, seen from outside.
		{"client key of zeros", func(priv key.NodePrivate, server key.NodePublic) []byte {
			return frame(derp.FrameClientInfo, make([]byte, 32), priv.SealTo(server, []byte(ordinaryInfo)))
		}},
		{"the relay's own key with a foreign box", func(priv key.NodePrivate, server key.NodePublic) []byte {
			return frame(derp.FrameClientInfo, server.AppendTo(nil), priv.SealTo(server, []byte(ordinaryInfo)))
		}},
		{"empty text", text("")},
		{"no JSON", text("{")},
		{"not UTF-8", text("\xff\xfe")},
		{"two values", text("{}{}")},
		{"nested too deeply", text(`{"x":` + strings.Repeat("[", 11000) + strings.Repeat("]", 11000) + `}`)},
		{"a wrong type before a right one", text(`{"version":"x","version":2}`)},
		{"long s for s", text(`{"verſion":"x"}`)},
		{"array", text("[]")},
		{"number", text("2")},
		{"string", text(`"x"`)},
		{"version is a string", text(`{"version":"2"}`)},
		{"version is a fraction", text(`{"version":2.5}`)},
		{"version is huge", text(`{"version":99999999999999999999}`)},
		{"CanAckPings is a number", text(`{"CanAckPings":1}`)},
		{"IsProber is a string", text(`{"IsProber":"true"}`)},
		{"AppName is a number", text(`{"AppName":1}`)},
		{"mesh key null", text(`{"meshKey":null}`)},
		{"mesh key a number", text(`{"meshKey":1}`)},
		{"mesh key of 63 digits", text(`{"meshKey":"` + mesh[:63] + `"}`)},
		{"mesh key of 65 digits", text(`{"meshKey":"` + mesh + `0"}`)},
		{"mesh key with spaces", text(`{"meshKey":" ` + mesh + ` "}`)},
		{"mesh key not hex", text(`{"meshKey":"` + mesh[:63] + `g"}`)},
		{"mesh key misspelt in case and short", text(`{"MESHKEY":"00"}`)},
	}
	if r.cfg.derper() {
		// pyderp takes an empty mesh key for none: some clients always send the field.
		cases = append(cases, struct {
			name string
			make func(key.NodePrivate, key.NodePublic) []byte
		}{"mesh key empty", text(`{"meshKey":""}`)})
	}
	for _, c := range cases {
		r.at("%s", c.name)
		s := r.stream()
		server, err := s.serverKey()
		r.must(err, "greeting")
		_ = s.write(c.make(key.NewNode(), server)) // the relay may hang up before it has read all
		r.must(s.hangUp(stepLimit), "after the faulty ClientInfo")
	}
	r.at("bystander")
	bystander.quiet()
	r.fact("cases", len(cases))
}

// muteLogin is the one scenario that waits for a clock, the relay's own.
func muteLogin(r *run) {
	mute, half := r.stream(), r.stream()
	server, err := mute.serverKey()
	r.must(err, "greeting")
	_, err = half.serverKey()
	r.must(err, "greeting")
	start := time.Now()
	info := clientInfo(key.NewNode(), server, ordinaryInfo)
	r.must(half.write(info[:40]), "half a ClientInfo")
	for i, s := range []*stream{mute, half} {
		r.must(s.hangUp(20*time.Second), "connection %d", i)
	}
	seconds := time.Since(start).Seconds()
	r.fact("dropped_after", fmt.Sprintf("%.1f s", seconds))
	r.check(seconds > 8 && seconds < 15, "dropped after %.1f s, want about 10", seconds)
}
