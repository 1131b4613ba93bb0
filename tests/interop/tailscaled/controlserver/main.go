// Command controlserver is a throw-away Tailscale control plane for tests: every node that asks is let in, every
// node sees every other, and the DERP map is the one file given. It is upstream's testcontrol package behind a listener.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "`ip:port` to serve on; port 0 picks a free one")
	derpMapFile := flag.String("derp-map", "", "`file` holding the tailcfg.DERPMap, as JSON, that all nodes receive")
	flag.Parse()
	log.SetFlags(log.Ltime | log.Lmicroseconds)

	derpMap, err := readDERPMap(*derpMapFile)
	if err != nil {
		log.Fatalf("controlserver: %v", err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatalf("controlserver: %v", err)
	}
	baseURL := "http://" + listener.Addr().String()
	control := &testcontrol.Server{
		Logf:             log.Printf,
		DERPMap:          derpMap,
		ExplicitBaseURL:  baseURL,
		AllNodesSameUser: true, // one owner, as in a private tailnet
		AllOnline:        true, // without it clients treat each other as possibly gone
	}
	fmt.Printf("ready %s\n", baseURL) // the line the tests wait for
	log.Fatalf("controlserver: %v", http.Serve(listener, control))
}

// readDERPMap refuses a missing or empty map: testcontrol reads "no map" as Tailscale's public relays.
func readDERPMap(path string) (*tailcfg.DERPMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("DERP map: %w", err)
	}
	derpMap := new(tailcfg.DERPMap)
	if err := json.Unmarshal(text, derpMap); err != nil {
		return nil, fmt.Errorf("DERP map %s: %w", path, err)
	}
	if len(derpMap.Regions) == 0 {
		return nil, fmt.Errorf("DERP map %s has no regions", path)
	}
	return derpMap, nil
}
