package crashfs_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// plainDisk is a second, naive account of what is durable in one directory.
type plainDisk struct {
	content map[string]*plainFile // what readers see
	names   map[string]*plainFile // what SyncDir last saw
}

type plainFile struct{ cached, durable string }

func (d *plainDisk) expect(seen bool) map[string]string {
	files := make(map[string]string)
	if seen {
		for name, f := range d.content {
			files[name] = f.cached
		}
		return files
	}
	for name, f := range d.names {
		files[name] = f.durable
	}
	return files
}

func copyNames(m map[string]*plainFile) map[string]*plainFile {
	c := make(map[string]*plainFile, len(m))
	for name, f := range m {
		c[name] = f
	}
	return c
}

func listing(t rapid.TB, fsys *crashfs.FS) map[string]string {
	names, err := fsys.List("/")
	must(t, err)
	files := make(map[string]string)
	for _, name := range names {
		files[name] = content(t, fsys, name)
	}
	return files
}

// After any operations DropAll leaves exactly what was synced, KeepAll and
// ProcessCrash exactly what was visible, and every other image is one from
// which the file system goes on: its own images agree with it.
func TestImagesAgreeWithAPlainAccount(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		fsys := crashfs.New()
		disk := &plainDisk{content: map[string]*plainFile{}, names: map[string]*plainFile{}}
		handles := make(map[*plainFile]vfs.File)
		name := func(r *rapid.T) string { return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "name") }
		existing := func(r *rapid.T) (string, *plainFile) {
			n := name(r)
			if disk.content[n] == nil {
				r.Skip("no such file")
			}
			return n, disk.content[n]
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				n := name(r)
				f, err := fsys.Create(n)
				if (err != nil) != (disk.content[n] != nil) {
					r.Fatalf("create %s: %v", n, err)
				}
				if err == nil {
					disk.content[n] = &plainFile{}
					handles[disk.content[n]] = f
				}
			},
			"write": func(r *rapid.T) {
				_, p := existing(r)
				text := rapid.StringMatching("[a-z]{1,6}").Draw(r, "text")
				off := rapid.IntRange(0, len(p.cached)).Draw(r, "offset")
				must(r, handles[p].WriteAt([][]byte{[]byte(text)}, int64(off)))
				p.cached = p.cached[:off] + text + p.cached[min(len(p.cached), off+len(text)):]
			},
			"truncate": func(r *rapid.T) {
				_, p := existing(r)
				size := rapid.IntRange(0, len(p.cached)).Draw(r, "size")
				must(r, handles[p].Truncate(int64(size)))
				p.cached = p.cached[:size]
			},
			"sync": func(r *rapid.T) {
				_, p := existing(r)
				must(r, handles[p].Sync())
				p.durable = p.cached
			},
			"sync directory": func(r *rapid.T) {
				must(r, fsys.SyncDir("/"))
				disk.names = copyNames(disk.content)
			},
			"remove": func(r *rapid.T) {
				n, _ := existing(r)
				must(r, fsys.Remove(n))
				delete(disk.content, n)
			},
			"rename": func(r *rapid.T) {
				from, p := existing(r)
				to := name(r)
				must(r, fsys.Rename(from, to))
				delete(disk.content, from)
				disk.content[to] = p
			},
			"": func(r *rapid.T) {
				for _, c := range []struct {
					policy crashfs.Policy
					want   map[string]string
				}{
					{crashfs.DropAll, disk.expect(false)},
					{crashfs.KeepAll, disk.expect(true)},
					{crashfs.ProcessCrash, disk.expect(true)},
				} {
					if got := listing(r, fsys.CrashImage(c.policy)); fmt.Sprint(got) != fmt.Sprint(c.want) {
						r.Fatalf("after %v: %v, want %v", c.policy, got, c.want)
					}
				}
				image := fsys.CrashImage(crashfs.Random(rapid.Uint64().Draw(r, "seed")))
				if ops := image.Pending(); len(ops) != 0 {
					r.Fatalf("after a power cut %v is pending", ops)
				}
				want := fmt.Sprint(listing(r, image))
				for _, p := range []crashfs.Policy{crashfs.DropAll, crashfs.KeepAll} {
					if got := fmt.Sprint(listing(r, image.CrashImage(p))); got != want {
						r.Fatalf("an image of %s is %s", want, got)
					}
				}
			},
		})
	})
}

// BenchmarkCrashImage forks a pool-like file system: 20 files of 1 MiB, 40
// pending writes.
func BenchmarkCrashImage(b *testing.B) {
	fsys := crashfs.New()
	block := make([]byte, 1<<20)
	for i := range 20 {
		f := durable(b, fsys, fmt.Sprint(i), "")
		must(b, f.WriteAt([][]byte{block}, 0))
		must(b, f.Sync())
		must(b, f.WriteAt([][]byte{block[:8192]}, 0))
		must(b, f.WriteAt([][]byte{block[:8192]}, 4096))
	}
	for _, p := range []crashfs.Policy{crashfs.ProcessCrash, crashfs.KeepAll, crashfs.DropAll, crashfs.Random(1)} {
		b.Run(p.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fsys.CrashImage(p)
			}
		})
	}
}
