package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// class reduces an error to what callers of vfs may rely on.
func class(err error) string {
	for _, target := range []error{
		fs.ErrNotExist, fs.ErrExist, io.EOF, vfs.ErrLocked,
		syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.EXDEV,
	} {
		if errors.Is(err, target) {
			return target.Error()
		}
	}
	if err != nil {
		return "other error"
	}
	return "success"
}

// side is one of the two file systems compared.
type side struct {
	fsys  vfs.FS
	dir   string
	files map[int]vfs.File
}

// both runs the same operation on the two sides and compares what comes out.
func both(t *rapid.T, sides [2]*side, what string, op func(s *side) (result any, err error)) {
	var results [2]string
	for i, s := range sides {
		result, err := op(s)
		results[i] = fmt.Sprintf("%v, %s", result, class(err))
	}
	if results[0] != results[1] {
		t.Fatalf("%s: the operating system gives %.200s; crashfs gives %.200s", what, results[0], results[1])
	}
}

// The same operations have the same results here and on the real file system.
func TestBehavesLikeTheOperatingSystem(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		memory := crashfs.New()
		if err := memory.Mkdir("/dir"); err != nil {
			t.Fatal(err)
		}
		sides := [2]*side{
			{vfs.OS(), dir, make(map[int]vfs.File)},
			{memory, "/dir", make(map[int]vfs.File)},
		}
		defer func() {
			for _, s := range sides {
				for _, f := range s.files {
					_ = f.Close()
				}
			}
			_ = os.RemoveAll(dir)
		}()
		m := &machine{sides: sides}
		t.Repeat(map[string]func(*rapid.T){
			"":         m.compare,
			"create":   m.create,
			"open":     m.open,
			"close":    m.close,
			"name":     m.name,
			"rename":   m.rename,
			"write":    m.write,
			"truncate": m.truncate,
			"allocate": m.allocate,
			"punch":    m.punch,
			"read":     m.read,
			"sync":     m.sync,
		})
	})
}

// machine draws operations.
type machine struct {
	sides [2]*side
	next  int   // number of the next file opened
	files []int // numbers of open files
}

var names = rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/b", "d/d", "a/x"})

// offsets lie near the boundaries of sectors, pages and tree nodes.
var offsets = rapid.Custom(func(t *rapid.T) int64 {
	near := rapid.SampledFrom([]int64{0, 512, 4096, 8192, 64 * 4096, 3 * 64 * 4096}).Draw(t, "near")
	return max(0, near+rapid.Int64Range(-600, 600).Draw(t, "by"))
})

func (m *machine) file(t *rapid.T) int {
	if len(m.files) == 0 {
		t.Skip("no file is open") // rapid's: another action is drawn
	}
	return rapid.SampledFrom(m.files).Draw(t, "file")
}

// opened runs an operation that opens a file on both sides.
func (m *machine) opened(t *rapid.T, what string, open func(fsys vfs.FS, name string) (vfs.File, error)) {
	if len(m.files) == 4 {
		t.Skip("enough files are open") // rapid's: another action is drawn
	}
	name, ok := names.Draw(t, "name"), false
	both(t, m.sides, what+" "+name, func(s *side) (any, error) {
		f, err := open(s.fsys, path.Join(s.dir, name))
		if err == nil {
			s.files[m.next] = f
			ok = true
		}
		return nil, err
	})
	if ok {
		m.files = append(m.files, m.next)
		m.next++
	}
}

func (m *machine) create(t *rapid.T) { m.opened(t, "create", vfs.FS.Create) }

func (m *machine) open(t *rapid.T) {
	if rapid.Bool().Draw(t, "read only") {
		m.opened(t, "open to read", vfs.FS.OpenReadOnly)
	} else {
		m.opened(t, "open", vfs.FS.Open)
	}
}

func (m *machine) close(t *rapid.T) {
	n := m.file(t)
	both(t, m.sides, "close", func(s *side) (any, error) {
		f := s.files[n]
		delete(s.files, n)
		return nil, f.Close()
	})
	m.files = slices.DeleteFunc(m.files, func(x int) bool { return x == n })
}

func (m *machine) name(t *rapid.T) {
	name := names.Draw(t, "name")
	what := rapid.SampledFrom([]string{"mkdir", "remove", "sync directory"}).Draw(t, "what")
	both(t, m.sides, what+" "+name, func(s *side) (any, error) {
		full := path.Join(s.dir, name)
		switch what {
		case "mkdir":
			return nil, s.fsys.Mkdir(full)
		case "remove":
			return nil, s.fsys.Remove(full)
		default:
			return nil, s.fsys.SyncDir(full)
		}
	})
}

func (m *machine) rename(t *rapid.T) {
	from, to := names.Draw(t, "from"), names.Draw(t, "to")
	both(t, m.sides, "rename "+from+" to "+to, func(s *side) (any, error) {
		return nil, s.fsys.Rename(path.Join(s.dir, from), path.Join(s.dir, to))
	})
}

func (m *machine) write(t *rapid.T) {
	n, off := m.file(t), offsets.Draw(t, "offset")
	seed := rapid.Byte().Draw(t, "seed")
	var bufs [][]byte
	for _, length := range rapid.SliceOfN(rapid.IntRange(0, 9000), 0, 4).Draw(t, "lengths") {
		seed += 31
		bufs = append(bufs, bytes.Repeat([]byte{seed, seed + 1, seed + 2}, length)[:length])
	}
	both(t, m.sides, "write", func(s *side) (any, error) { return nil, s.files[n].WriteAt(bufs, off) })
}

func (m *machine) truncate(t *rapid.T) {
	n, size := m.file(t), offsets.Draw(t, "size")
	both(t, m.sides, "truncate", func(s *side) (any, error) { return nil, s.files[n].Truncate(size) })
}

func (m *machine) allocate(t *rapid.T) {
	n, off, length := m.file(t), offsets.Draw(t, "offset"), offsets.Draw(t, "length")
	both(t, m.sides, "allocate", func(s *side) (any, error) { return nil, s.files[n].Allocate(off, length) })
}

func (m *machine) punch(t *rapid.T) {
	n, off, length := m.file(t), offsets.Draw(t, "offset"), offsets.Draw(t, "length")
	both(t, m.sides, "punch", func(s *side) (any, error) { return nil, s.files[n].PunchHole(off, length) })
}

func (m *machine) read(t *rapid.T) {
	n, off := m.file(t), offsets.Draw(t, "offset")
	length := rapid.IntRange(0, 10_000).Draw(t, "length")
	both(t, m.sides, "read", func(s *side) (any, error) {
		p := make([]byte, length)
		got, err := s.files[n].ReadAt(p, off)
		return p[:got], err
	})
}

func (m *machine) sync(t *rapid.T) {
	n, drop := m.file(t), rapid.Bool().Draw(t, "drop cache")
	both(t, m.sides, "sync", func(s *side) (any, error) {
		if drop {
			return nil, s.files[n].DropCache()
		}
		return nil, s.files[n].Sync()
	})
}

// compare looks at all names and at the whole content of the open files.
func (m *machine) compare(t *rapid.T) {
	for _, dir := range []string{"", "d"} {
		both(t, m.sides, "list "+dir, func(s *side) (any, error) { return s.fsys.List(path.Join(s.dir, dir)) })
	}
	for _, n := range m.files {
		both(t, m.sides, "content", func(s *side) (any, error) {
			size, err := s.files[n].Size()
			if err != nil {
				return nil, err
			}
			p := make([]byte, size)
			if _, err = s.files[n].ReadAt(p, 0); errors.Is(err, io.EOF) && size == 0 {
				err = nil
			}
			return fmt.Sprintf("%d bytes %x", size, crc32.ChecksumIEEE(p)), err
		})
	}
}
