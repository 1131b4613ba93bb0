// Command gowsconn is one end of a byte stream over a websocket: Tailscale's net/wsconn, driven by its arguments.
//
//	gowsconn [-dial URL] [-type text] STEP...
//
// Without -dial it listens on a free port of 127.0.0.1, prints the port on a line, and takes one connection.
// At the end it prints a JSON array with what each step saw. The steps:
//
//	write:SIZE,SIZE…   a write for each size
//	fragments:SIZE,…   one message, in fragments of these sizes, past net/wsconn
//	pump:SIZE          write so many bytes in pieces of odd sizes, beside the steps that follow
//	pumped             wait for pump
//	read:SIZE          read until there are so many bytes, at most 997 at a time
//	readall            read until an error
//	deadline:MS        set the read deadline, so many milliseconds from now
//	message:TYPE:TEXT  a message of a type, past net/wsconn
//	close              close
//	close:CODE:REASON  close with a code, past net/wsconn
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/net/wsconn"
)

// bound is how long one run may take in all.
const bound = 40 * time.Second

// seen is what a step saw.
type seen struct {
	Step   string `json:"step"`
	Error  string `json:"error,omitempty"`
	EOF    bool   `json:"eof,omitempty"`    // the error is io.EOF itself
	Status int    `json:"status,omitempty"` // of the close frame in the error; -1: none
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
	Reads  []int  `json:"reads,omitempty"` // the results of the first reads
}

func (s *seen) fail(err error) {
	if err == nil {
		return
	}
	s.Error = err.Error()
	s.EOF = err == io.EOF
	s.Status = int(websocket.CloseStatus(err))
}

func main() {
	dial := flag.String("dial", "", "URL to connect to, instead of listening")
	kind := flag.String("type", "binary", "type of the messages: binary or text")
	flag.Parse()
	time.AfterFunc(bound, func() { log.Fatal("gowsconn: took too long") })

	typ := websocket.MessageBinary
	if *kind == "text" {
		typ = websocket.MessageText
	}
	var results []seen
	var err error
	if *dial != "" {
		results, err = client(*dial, typ, flag.Args())
	} else {
		results, err = server(typ, flag.Args())
	}
	if err != nil {
		log.Fatalf("gowsconn: %v", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		log.Fatal(err)
	}
}

func client(url string, typ websocket.MessageType, steps []string) ([]seen, error) {
	options := &websocket.DialOptions{CompressionMode: websocket.CompressionDisabled}
	ws, _, err := websocket.Dial(context.Background(), url, options)
	if err != nil {
		return nil, err
	}
	return play(ws, typ, url, steps)
}

func server(typ websocket.MessageType, steps []string) ([]seen, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	type outcome struct {
		results []seen
		err     error
	}
	done := make(chan outcome, 1)
	handler := func(w http.ResponseWriter, r *http.Request) {
		options := &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled}
		ws, err := websocket.Accept(w, r, options)
		if err != nil {
			done <- outcome{nil, err}
			return
		}
		results, err := play(ws, typ, r.RemoteAddr, steps)
		done <- outcome{results, err}
	}
	go http.Serve(listener, http.HandlerFunc(handler))
	o := <-done
	return o.results, o.err
}

// play runs the steps and drops the connection after them.
func play(ws *websocket.Conn, typ websocket.MessageType, remote string, steps []string) ([]seen, error) {
	defer ws.CloseNow()
	p := &player{ws: ws, conn: wsconn.NetConn(context.Background(), ws, typ, remote)}
	results := []seen{}
	for _, step := range steps {
		s := seen{Step: step}
		if err := p.step(&s, strings.SplitN(step, ":", 3)); err != nil {
			return nil, fmt.Errorf("step %q: %w", step, err)
		}
		results = append(results, s)
	}
	return results, nil
}

type player struct {
	ws     *websocket.Conn
	conn   net.Conn
	pumped chan seen
}

func (p *player) step(s *seen, words []string) error {
	argument := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	switch words[0] {
	case "write":
		return p.write(s, p.conn, argument(1))
	case "fragments":
		w, err := p.ws.Writer(context.Background(), websocket.MessageBinary)
		if err != nil {
			return err
		}
		defer w.Close()
		return p.write(s, w, argument(1))
	case "pump":
		n, err := strconv.Atoi(argument(1))
		if err != nil {
			return err
		}
		p.pumped = make(chan seen, 1)
		go p.pump(n)
	case "pumped":
		*s = <-p.pumped
	case "read":
		n, err := strconv.Atoi(argument(1))
		if err != nil {
			return err
		}
		p.read(s, n)
	case "readall":
		p.read(s, -1)
	case "deadline":
		ms, err := strconv.Atoi(argument(1))
		if err != nil {
			return err
		}
		s.fail(p.conn.SetReadDeadline(time.Now().Add(time.Duration(ms) * time.Millisecond)))
	case "message":
		typ := map[string]websocket.MessageType{"text": websocket.MessageText, "binary": websocket.MessageBinary}
		s.fail(p.ws.Write(context.Background(), typ[argument(1)], []byte(argument(2))))
	case "close":
		if len(words) == 1 {
			s.fail(p.conn.Close())
			return nil
		}
		code, err := strconv.Atoi(argument(1))
		if err != nil {
			return err
		}
		s.fail(p.ws.Close(websocket.StatusCode(code), argument(2)))
	default:
		return errors.New("no such step")
	}
	return nil
}

// content is what is written: letters, so that it is text too, in an order that shows a byte out of place.
func content(start, n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte('a' + (start+i)*7919/13%26)
	}
	return data
}

// write makes a write for each size in a list.
func (p *player) write(s *seen, w io.Writer, sizes string) error {
	for _, size := range strings.Split(sizes, ",") {
		n, err := strconv.Atoi(size)
		if err != nil {
			return err
		}
		_, err = w.Write(content(s.Bytes, n))
		s.Bytes += n
		s.fail(err)
	}
	return nil
}

func (p *player) pump(n int) {
	s := seen{Step: "pumped"}
	hash := sha256.New()
	for i := 0; s.Bytes < n; i++ {
		data := content(s.Bytes, min(1+i*1237%32768, n-s.Bytes))
		hash.Write(data)
		if _, err := p.conn.Write(data); err != nil {
			s.fail(err)
			break
		}
		s.Bytes += len(data)
	}
	s.SHA256 = hex.EncodeToString(hash.Sum(nil))
	p.pumped <- s
}

// read reads n bytes, or until an error if n is negative.
func (p *player) read(s *seen, n int) {
	hash := sha256.New()
	buf := make([]byte, 997)
	for n < 0 || s.Bytes < n {
		room := buf
		if n >= 0 {
			room = buf[:min(len(buf), n-s.Bytes)]
		}
		got, err := p.conn.Read(room)
		hash.Write(room[:got])
		s.Bytes += got
		if len(s.Reads) < 40 {
			s.Reads = append(s.Reads, got)
		}
		if err != nil {
			s.fail(err)
			break
		}
	}
	s.SHA256 = hex.EncodeToString(hash.Sum(nil))
}
