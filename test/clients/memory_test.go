package clients

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// Scattered blocks are the worst case for the maps: nearly every block has a leaf of its own, and
// the maps are as large as the data. The daemon stays within its memory while they are
// written, listed, checked and reclaimed, and when it is killed and opens the pool again.
//
// The figure promised: -run Scattered -scattered.blocks 4000000 -scattered.cache 16M -scattered.limit 160M
func TestScatteredBlocksTakeBoundedMemory(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	limit := bytesOf(t, *scatteredLimit)

	// The race detector multiplies memory: this test is of the program as users have it.
	plain := filepath.Join(root, "varve-plain")
	if out, err := exec.Command("go", "build", "-o", plain, "varve/cmd/varve").CombinedOutput(); err != nil {
		t.Fatalf("build varve: %v\n%s", err, out)
	}
	data := filepath.Join(scratch(t), "d")
	d := serveProgram(t, plain, data, "--map-cache", *scatteredCache)
	d.varve("volume", "create", "v", "--size", "64T")
	within := func(when string) {
		t.Helper()
		most := peakMemory(t, d.cmd.Process.Pid)
		t.Logf("%s: %d MiB", when, most>>20)
		if most > limit {
			t.Errorf("%s the daemon has taken %d bytes, of at most %d", when, most, limit)
		}
	}
	c := d.connect("v")
	const atOnce = 64
	var sample []int64
	p := make([]byte, atOnce*block.Size)
	for done := 0; done < *scatteredBlocks; done += atOnce {
		ops := make([]*block.Op, 0, atOnce)
		for i := range min(atOnce, *scatteredBlocks-done) {
			lba := random.Int64N(64 << 40 / block.Size)
			b := p[i*block.Size : (i+1)*block.Size]
			fill(b, lba, 1)
			ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: b})
			if i == 0 && done%(16*atOnce) == 0 {
				sample = append(sample, lba)
			}
		}
		must(t, submit(c, ops), "write")
		if done == *scatteredBlocks/2/atOnce*atOnce {
			d.varve("snapshot", "create", "v", "--name", "half")
		}
	}
	verify := func(c *client.Client) {
		t.Helper()
		for _, lba := range sample {
			b, err := read(c, lba*block.Size, block.Size)
			must(t, err, "read")
			if s, err := stamped(b, lba); err != nil || s != 1 {
				t.Fatalf("block %d: %d %v", lba, s, err)
			}
		}
	}
	within("written")
	pool := ask[contract.Pool](d, "pool", "show")
	t.Logf("%.3f bytes of log and checkpoints a byte, %d checkpoints, stalls %+v",
		float64(pool.LogBytes)/float64(pool.ClientBytes), pool.Checkpoints, pool.Stalls)
	verify(c)
	d.varve("snapshot", "list")
	d.varve("pool", "reclaim")
	within("listed and reclaimed")
	d.checkPool()
	within("checked")

	c = d.connect("v")
	must(t, write(c, p, 0), "write")
	d.kill()
	d = serveProgram(t, plain, data, "--map-cache", *scatteredCache)
	within("opened after the kill")
	verify(d.connect("v"))
	d.varve("snapshot", "delete", "v@half")
	within("read")
	d.stop()
}

// bytesOf is a size as varve takes it: mebibytes.
func bytesOf(t *testing.T, size string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSuffix(size, "M"), 10, 64)
	must(t, err, "the size %q, such as 64M", size)
	return n << 20
}

// peakMemory is the most physical memory that a process had since it was started, in bytes.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err, "read the process's status")
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			must(t, err, "%s", line)
			return n << 10
		}
	}
	t.Fatalf("no VmHWM in\n%s", status)
	return 0
}
