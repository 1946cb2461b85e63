package depot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/contract"
	"varve/internal/repository"
	"varve/internal/vfs"
)

// What somebody uses is not taken away from him, also where a file may be replaced; and not if he began while it was restored.
func TestATargetInUseIsNotReplaced(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	b := f.backUp(t, contract.BackupAuto)
	uses := map[string]func(*testing.T, string) (end func()){
		"locked": func(t *testing.T, name string) func() {
			l, err := vfs.OS().LockDisk(name)
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		},
		"open for writing": func(t *testing.T, name string) func() {
			w, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() { w.Close() }
		},
	}
	for how, use := range uses {
		for _, format := range []string{"raw", "qcow2"} {
			r := contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(t.TempDir(), "out"), Format: format, Force: true}
			refused := func(err error) {
				t.Helper()
				if codeOf(err) != contract.CodeRefused || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), how) {
					t.Fatalf("%s, %s: %v", how, format, err)
				}
				hold(t, r.ToFile, []byte("mine"))
			}
			write := func() {
				if err := os.WriteFile(r.ToFile, []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write()
			end := use(t, r.ToFile)
			_, err := f.RestoreFile(t.Context(), r, nil)
			refused(err)
			end()
			nothingLeft(t, filepath.Dir(r.ToFile), "out")

			os.Remove(r.ToFile)
			end = nil
			_, err = f.RestoreFile(t.Context(), r, func(int64, int64) {
				if end == nil {
					write()
					end = use(t, r.ToFile)
				}
			})
			refused(err)
			if told := Explain(err); !strings.Contains(told.Hint, "goes on with it") {
				t.Errorf("%s, %s: the hint is %q", how, format, told.Hint)
			}
			end()
			if done, err := f.RestoreFile(t.Context(), r, nil); err != nil || done.WrittenBytes != 0 {
				t.Fatalf("going on: %+v, %v", done, err)
			}
			nothingLeft(t, filepath.Dir(r.ToFile), "out")
		}
	}
}

// A restore to "disk" leaves alone what was restored of "disk.raw", and what a snapshot is being copied to.
func TestPartsOfOtherTargetsStay(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	b := f.backUp(t, contract.BackupAuto)
	dir := t.TempDir()
	others := []string{".disk.raw." + b.ID + partSuffix, ".disk.raw.123" + partSuffix, ".disk.raw" + partSuffix}
	for _, name := range others {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"raw", "qcow2"} {
		r := contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(dir, "disk"), Format: format, Force: true}
		if _, err := f.RestoreFile(t.Context(), r, nil); err != nil {
			t.Fatal(err)
		}
	}
	nothingLeft(t, dir, ".disk.raw.123"+partSuffix, others[0], others[2], "disk")
}
