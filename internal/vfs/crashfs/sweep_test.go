package crashfs

import (
	"fmt"
	"testing"
)

// A long test that makes and removes files does not grow.
func TestRemovedFilesAreForgotten(t *testing.T) {
	fsys := New()
	for i := range 10 {
		name := fmt.Sprint(i)
		f, err := fsys.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{
			f.Sync(), fsys.SyncDir("/"), fsys.Remove(name), fsys.SyncDir("/"), f.Close(), fsys.SyncDir("/"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(fsys.inodes) != 1 {
		t.Fatalf("%d inodes are known, want the root only", len(fsys.inodes))
	}
}
