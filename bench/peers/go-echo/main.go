// An echo server in Go, as one would write it: a goroutine for each connection, a buffer in each goroutine.
//
// go-echo PORT. The runtime raises the limit on open files, listens with the host's backlog (net.core.somaxconn), sets
// TCP_NODELAY, and runs on as many threads as it may use CPUs.
package main

import (
	"log"
	"net"
	"os"
)

// Enough for the messages of the bench in one read.
const bufferBytes = 4096

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: go-echo PORT")
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			// Such as EMFILE: said, for a server that takes no more looks like one that is slow.
			log.Print("cannot accept: ", err)
			continue
		}
		go echo(conn)
	}
}

func echo(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, bufferBytes)
	for {
		read, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:read]); err != nil {
			return
		}
	}
}
