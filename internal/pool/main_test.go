package pool_test

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
)

// TestMain has memory collected four times as seldom. Tests make thousands of small pools, and what is alive of them at any time is so little that half of the processor's time
// would go into collecting the rest. Benchmarks are of a program as it is.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	os.Exit(m.Run())
}
