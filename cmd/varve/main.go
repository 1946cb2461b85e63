// Command varve stores virtual disks, serves them over NBD, and snapshots them.
package main

import (
	"os"
	"runtime/debug"

	"varve/internal/cli"
)

// version is stamped by the Makefile; a plain `go build` says what it knows.
var version string

func main() {
	if version == "" {
		version = "unknown"
		if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
			version = info.Main.Version
		}
	}
	os.Exit(cli.Main(os.Args[1:], version))
}
