package clients

import (
	"path/filepath"
	"testing"

	"varve/internal/contract"
)

// TestRangesOfARollback: a client sees the ranges as they were and the rest as it is, in the pool and in a file, and after a kill at any time
// either all of that or nothing.
func TestRangesOfARollback(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	data := filepath.Join(dir, "d")
	d := serve(t, data)
	d.varve("volume", "create", "pooled", "--size", "64M")
	d.varve("volume", "create", "placed", "--inplace", filepath.Join(dir, "placed.img"), "--size", "64M")
	volumes := []string{"pooled", "placed"}
	for _, v := range volumes {
		run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 48M", "-c", "flush", d.uri(v))
	}
	d.varve("snapshot", "create", "pooled", "placed", "--name", "one")
	for _, v := range volumes {
		run(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64M", "-c", "flush", d.uri(v))
	}
	for _, v := range volumes {
		r := ask[contract.Rollback](d, "snapshot", "rollback", v+"@one", "--range", "4M+1M", "--range", "47M+2M")
		now := d.uri(v)
		run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 4M", "-c", "read -P 1 4M 1M", "-c", "read -P 2 5M 42M",
			"-c", "read -P 1 47M 1M", "-c", "read -P 0 48M 1M", "-c", "read -P 2 49M 15M", now)
		run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 64M", d.uri(r.Kept.Ref()))
		run(t, "qemu-io", "-f", "raw", "-c", "write -P 3 4M 64k", "-c", "flush", now)
		d.varve("snapshot", "rollback", r.Kept.Ref())
		run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 64M", now)
	}
	d.awaitCopyBack("placed")

	for range 3 {
		snapshots := map[string]int{}
		for _, v := range volumes {
			snapshots[v] = ask[contract.Volume](d, "volume", "show", v).Snapshots
			d.varve("snapshot", "rollback", v+"@one", "--range", "0+64M", "--detach")
		}
		d.kill()
		d = serve(t, data)
		for _, v := range volumes {
			if ask[contract.Volume](d, "volume", "show", v).Snapshots > snapshots[v] {
				run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 48M", "-c", "read -P 0 48M 16M", d.uri(v))
			} else {
				run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 64M", d.uri(v))
			}
			run(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 64M", "-c", "flush", d.uri(v))
			run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 48M", "-c", "read -P 0 48M 16M", d.uri(v+"@one"))
		}
	}
	d.awaitCopyBack("placed")
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 64M", filepath.Join(dir, "placed.img"))
	d.checkPool()
}
