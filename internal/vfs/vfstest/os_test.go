package vfstest_test

import (
	"testing"

	"varve/internal/vfs"
	"varve/internal/vfs/vfstest"
)

func TestOSContract(t *testing.T) {
	vfstest.Contract(t, func(t *testing.T) (vfs.FS, string) { return vfs.OS(), t.TempDir() })
}
