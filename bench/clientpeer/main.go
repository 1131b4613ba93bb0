// Command clientpeer moves packets with Go's own DERP client, and prints the CPU time for them.
//
// Two of them, or one and bench/client.py, exchange packets through a relay: the sender sends bursts and
// keeps a number of them in flight, the receiver acknowledges each burst with a small packet.
// So either the sender or the receiver can be the program that is measured.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"syscall"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

var (
	url      = flag.String("url", "", "the relay, without TLS")
	host     = flag.String("host", "", "the relay's address with TLS, and its port in -port")
	port     = flag.Int("port", 0, "see -host")
	pin      = flag.String("pin", "", "sha256-raw:HEX of the relay's certificate")
	role     = flag.String("role", "", "send or receive")
	seed     = flag.String("seed", "", "the private key is the hash of this and the role")
	packets  = flag.Int("packets", 100000, "to move and measure")
	warmup   = flag.Int("warmup", 10000, "to move before")
	burst    = flag.Int("burst", 8, "packets a burst")
	inFlight = flag.Int("in-flight", 3, "bursts that wait for their acknowledgement")
	size     = flag.Int("size", 1200, "bytes a packet")
)

func main() {
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("clientpeer: ")
	me, other := keyOf(*role), keyOf(map[string]string{"send": "receive", "receive": "send"}[*role])
	client := newClient(me)
	defer client.Close()
	if err := client.Connect(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	fmt.Scanln() // both sides are connected
	var total time.Duration
	if *role == "send" {
		total = send(client, other.Public())
	} else {
		total = receive(client, other.Public())
	}
	json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"cpu_us_per_packet": float64(total.Nanoseconds()) / 1000 / float64(*packets),
	})
}

// keyOf derives a key from the seed and a role, so that each side knows the key of the other.
func keyOf(role string) key.NodePrivate {
	sum := sha256.Sum256([]byte(*seed + role))
	sum[0] &= 248
	sum[31] = sum[31]&127 | 64
	var k key.NodePrivate
	if err := k.UnmarshalText([]byte("privkey:" + hex.EncodeToString(sum[:]))); err != nil {
		log.Fatal(err)
	}
	return k
}

func newClient(me key.NodePrivate) *derphttp.Client {
	quiet := func(string, ...any) {}
	monitor := netmon.NewStatic()
	if *url != "" {
		client, err := derphttp.NewClient(me, *url, quiet, monitor)
		if err != nil {
			log.Fatal(err)
		}
		return client
	}
	node := &tailcfg.DERPNode{Name: "1a", RegionID: 1, HostName: *host, DERPPort: *port, CertName: *pin}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "b", Nodes: []*tailcfg.DERPNode{node}}
	return derphttp.NewRegionClient(me, quiet, monitor, func() *tailcfg.DERPRegion { return region })
}

func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// next returns the next packet.
func next(client *derphttp.Client) []byte {
	for {
		message, err := client.Recv()
		if err != nil {
			log.Fatal(err)
		}
		if packet, ok := message.(derp.ReceivedPacket); ok {
			return packet.Data
		}
	}
}

func send(client *derphttp.Client, to key.NodePublic) time.Duration {
	acknowledged := make(chan struct{}, 1024)
	go func() {
		for {
			next(client)
			acknowledged <- struct{}{}
		}
	}()
	packet := make([]byte, *size)
	move := func(count int) {
		waiting := 0
		for sent := 0; sent < count; sent += *burst {
			if waiting == *inFlight {
				<-acknowledged
				waiting--
			}
			for range *burst {
				if err := client.Send(to, packet); err != nil {
					log.Fatal(err)
				}
			}
			waiting++
		}
		for ; waiting > 0; waiting-- {
			<-acknowledged
		}
	}
	move(*warmup)
	before := cpu()
	move(*packets)
	return cpu() - before
}

func receive(client *derphttp.Client, from key.NodePublic) time.Duration {
	move := func(count int) {
		for got := 1; got <= count; got++ {
			if len(next(client)) != *size {
				log.Fatal("a packet of another size")
			}
			if got%*burst == 0 {
				if err := client.Send(from, []byte("ack")); err != nil {
					log.Fatal(err)
				}
			}
		}
	}
	move(*warmup)
	before := cpu()
	move(*packets)
	return cpu() - before
}
