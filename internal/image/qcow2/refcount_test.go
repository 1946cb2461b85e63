package qcow2

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/internal/image/imagetest"
	"varve/internal/image/target"
)

// Reference counts are right on both sides of every boundary of their tables. To
// get there without gigabytes of data, the writer passes over clusters; being
// counted and not used, qemu-img reports each of them as leaked, and nothing else.
func TestRefcountsOfLargeFiles(t *testing.T) {
	qemuImg := imagetest.Program(t, "qemu-img")
	const perBlock = refcountsInBlock
	for _, passed := range []int64{
		1, perBlock - 6, perBlock - 5, perBlock - 4, perBlock - 3, perBlock, 2*perBlock - 7, 2*perBlock - 6, 2*perBlock - 5, 2*perBlock - 4,
		5*perBlock - 8, 5*perBlock - 9,
	} {
		path := filepath.Join(t.TempDir(), "out.qcow2")
		out, err := target.Create(path, false)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Abort()
		w := newWriter(out, 1<<30)
		w.next += passed << writeClusterBits
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
		if err := out.Commit(); err != nil {
			t.Fatal(err)
		}
		// The exit status is 3 where there are leaks and nothing worse.
		answer, err := exec.Command(qemuImg, "check", "-f", "qcow2", "--output=json", path).Output()
		if status := new(exec.ExitError); !errors.As(err, &status) || status.ExitCode() != 3 {
			t.Fatalf("%d clusters passed over: qemu-img check: %v\n%s", passed, err, answer)
		}
		var result struct{ Leaks, Corruptions, ImageEndOffset int64 }
		if err := json.Unmarshal(answer, &result); err != nil {
			t.Fatal(err)
		}
		if result.Leaks != passed || result.Corruptions != 0 {
			t.Errorf("%d clusters passed over: %+v", passed, result)
		}
	}
}
