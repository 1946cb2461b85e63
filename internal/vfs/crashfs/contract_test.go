package crashfs_test

import (
	"testing"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
	"varve/internal/vfs/vfstest"
)

func newDir(t *testing.T) (*crashfs.FS, string) {
	fsys := crashfs.New()
	if err := fsys.Mkdir("/dir"); err != nil {
		t.Fatal(err)
	}
	return fsys, "/dir"
}

func TestContract(t *testing.T) {
	vfstest.Contract(t, func(t *testing.T) (vfs.FS, string) { return newDir(t) })
}

func TestContractWithNothingInMemory(t *testing.T) {
	vfstest.Contract(t, func(t *testing.T) (vfs.FS, string) {
		fsys, dir := newDir(t)
		fsys.SetCold(true)
		return fsys, dir
	})
}
