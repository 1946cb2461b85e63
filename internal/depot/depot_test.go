package depot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/internal/block/memdisk"
	"varve/internal/contract"
	"varve/internal/image/imagetest"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/config"
)

// fixture is a repository in a store that fails as told, and a raw disk.
type fixture struct {
	*Depot
	store   *faulty.Store
	file    string
	content []byte
}

func noise(seed byte, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

func newFixture(t *testing.T, o repository.CreateOptions) *fixture {
	t.Helper()
	f := &fixture{store: faulty.New(), file: filepath.Join(t.TempDir(), "disk"), content: noise(1, 2<<20+512)}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = config.MinChunkBytes
	}
	repo, err := repository.Create(t.Context(), f.store, o)
	if err != nil {
		t.Fatal(err)
	}
	f.Depot = New(repo, contract.RepositoryAccess{}, Options{Name: "here", Program: "test"})
	f.write(t)
	return f
}

func (f *fixture) write(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(f.file, f.content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// again opens the repository anew, as another process does.
func (f *fixture) again(t *testing.T) {
	t.Helper()
	repo, err := repository.Open(t.Context(), f.store, repository.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.Depot = New(repo, contract.RepositoryAccess{}, Options{Name: "here", Program: "test"})
}

func (f *fixture) backUp(t *testing.T, kind string) contract.Backup {
	t.Helper()
	f.write(t)
	b, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Type: kind, Foreign: &contract.ForeignSource{Source: f.file, As: "disk"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func codeOf(err error) contract.Code {
	told := Explain(err)
	if told == nil {
		return ""
	}
	return told.Code
}

func hold(t *testing.T, file string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s does not hold what it should (%v)", file, err)
	}
}

// nothingLeft wants that a directory has nothing but these.
func nothingLeft(t *testing.T, dir string, but ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(but)
	if fmt.Sprint(names) != fmt.Sprint(but) {
		t.Fatalf("%s has %v, not %v", dir, names, but)
	}
}

// A store that is full ends the backup with nothing visible; what was stored by then is found by the next one.
func TestAFullStoreLeavesNothingVisible(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	f.content = noise(1, 70<<20)
	f.write(t)
	f.store.SetCapacity(f.store.UsedBytes() + 50<<20)
	_, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Foreign: &contract.ForeignSource{Source: f.file, As: "disk"}}, nil)
	if !errors.Is(err, objects.ErrFull) || codeOf(err) != contract.CodeFailed {
		t.Fatalf("backup: %v", err)
	}
	all, warnings, err := f.Backups(t.Context(), "")
	if err != nil || len(all)+len(warnings) > 0 {
		t.Fatal(all, warnings, err)
	}
	f.store.SetCapacity(1 << 40)
	f.again(t)
	b := f.backUp(t, contract.BackupAuto)
	if b.Type != contract.BackupFull || b.NewBytes+b.DuplicateBytes != int64(len(f.content)) {
		t.Fatalf("%+v", b)
	}
	target := filepath.Join(t.TempDir(), "out")
	if _, err := f.RestoreFile(t.Context(), contract.RestoreBackup{Backup: b.ID, ToFile: target}, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, target, f.content)
}

// A restore that is cut short leaves nothing under the file's name, and the next one goes on with what was done.
func TestARestoreGoesOnWhereItWasCutShort(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		f := newFixture(t, repository.CreateOptions{})
		f.content = noise(3, 40<<20)
		b := f.backUp(t, contract.BackupAuto)
		dir := t.TempDir()
		r := contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(dir, "out"), Format: format}
		ctx, cancel := context.WithCancel(t.Context())
		_, err := f.RestoreFile(ctx, r, func(done, total int64) {
			if done > 0 {
				cancel()
			}
		})
		told := Explain(err)
		if told == nil || !strings.Contains(told.Hint, "goes on") || !strings.HasPrefix(told.Message, "interrupted") {
			t.Fatalf("cut short: %v", err)
		}
		part := ".out." + b.ID + ".varve-part"
		nothingLeft(t, dir, part)
		// That of another backup, and what an export left, are in nobody's way.
		for _, old := range []string{".out.0123456789abcdef.varve-part", ".out.12345.varve-part"} {
			if err := os.WriteFile(filepath.Join(dir, old), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		done, err := f.RestoreFile(t.Context(), r, nil)
		if err != nil || done.SameBytes == 0 || done.SameBytes+done.WrittenBytes != int64(len(f.content)) {
			t.Fatalf("going on: %+v, %v", done, err)
		}
		nothingLeft(t, dir, "out")
		if format == "raw" {
			hold(t, r.ToFile, f.content)
		} else if !bytes.Equal(imagetest.ConvertToRaw(t, r.ToFile, format), f.content) {
			t.Fatal("the qcow2 file does not hold what it should")
		}
	}
}

// While one restore writes to a file, another one of the same backup to it is refused.
func TestTwoRestoresToOneFile(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	b := f.backUp(t, contract.BackupAuto)
	r := contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(t.TempDir(), "out")}
	listed, err := f.repo.Backup(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPart(r.ToFile, listed.Backup, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.RestoreFile(t.Context(), r, nil); codeOf(err) != contract.CodeRefused || !strings.Contains(err.Error(), "under way") {
		t.Fatalf("second: %v", err)
	}
	p.close()
	if _, err := f.RestoreFile(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, r.ToFile, f.content)
}

// What is lost is told by list, show and verify, harms those that need it and no others, and the next backup heals it.
func TestLostContentIsToldAndHealed(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	first := f.backUp(t, contract.BackupAuto)
	copy(f.content[1<<20:], noise(7, 64<<10))
	second := f.backUp(t, contract.BackupFull)
	var packs []string
	for _, name := range f.store.Names() {
		if strings.HasPrefix(name, "packs/") {
			packs = append(packs, name)
		}
	}
	if len(packs) != 2 {
		t.Fatal(packs)
	}
	// The second session's pack holds what only the second backup needs.
	lost := packs[0]
	if len(f.store.Bytes(packs[1])) < len(f.store.Bytes(packs[0])) {
		lost = packs[1]
	}
	f.store.Lose(lost)
	f.again(t)
	now, err := f.repo.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.repo.PutLedger(t.Context(), now, []repository.Verdict{{Object: lost, Condition: repository.Lost}}); err != nil {
		t.Fatal(err)
	}
	state := func(id string) contract.BackupState {
		b, err := f.Backup(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return b.State
	}
	if a, b := state(first.ID), state(second.ID); a != contract.BackupGood || b != contract.BackupDamaged {
		t.Fatalf("states %s and %s", a, b)
	}
	if r, err := f.Describe(t.Context()); err != nil || r.Damaged != 1 || r.Backups != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	v, err := f.Verify(t.Context(), []string{first.ID, second.ID}, nil)
	if codeOf(err) != contract.CodeDamaged || len(v) != 2 || !v[0].OK() || len(v[1].Lost) != 1 || v[1].Lost[0] != (contract.Extent{Offset: 1 << 20, Length: 64 << 10}) {
		t.Fatalf("%+v, %v", v, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	r := contract.RestoreBackup{Backup: second.ID, ToFile: out, SkipDamaged: true}
	done, err := f.RestoreFile(t.Context(), r, nil)
	if codeOf(err) != contract.CodeDamaged || len(done.Lost) != 1 || done.Lost[0] != v[1].Lost[0] {
		t.Fatalf("%+v, %v", done, err)
	}
	want := bytes.Clone(f.content)
	clear(want[1<<20 : 1<<20+64<<10])
	hold(t, out, want)

	third := f.backUp(t, contract.BackupAuto)
	if third.BaseID != first.ID {
		t.Errorf("based on %s, and %s is whole", third.BaseID, first.ID)
	}
	if _, err := f.Verify(t.Context(), []string{first.ID, second.ID, third.ID}, nil); err != nil {
		t.Fatalf("after the next backup: %v", err)
	}
	if s := state(second.ID); s != contract.BackupGood {
		t.Errorf("healed, it is %s", s)
	}
}

// A source keeps its volume's UUID under a name, also in a copy of the repository, and another name is another volume.
func TestANameIsOneVolume(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	a, b := f.backUp(t, contract.BackupAuto), f.backUp(t, contract.BackupAuto)
	other, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Foreign: &contract.ForeignSource{Source: f.file, As: "other"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.VolumeID != b.VolumeID || a.VolumeID == other.VolumeID || b.BaseID != a.ID || b.NewBytes != 0 {
		t.Fatalf("%+v\n%+v\n%+v", a, b, other)
	}
	g := newFixture(t, repository.CreateOptions{ChunkBytes: 256 << 10})
	done, err := Copy(t.Context(), f.Depot, g.Depot, contract.CopyRepository{Backups: []string{b.ID}}, nil)
	if err != nil || len(done.Copied) != 1 || done.Copied[0].ID != b.ID {
		t.Fatalf("%+v, %v", done, err)
	}
	g.content = f.content
	if c := g.backUp(t, contract.BackupAuto); c.VolumeID != a.VolumeID || c.BaseID != b.ID || c.NewBytes != 0 {
		t.Fatalf("in the copy: %+v", c)
	}
	if err := g.repo.Delete(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), f.Depot, g.Depot, contract.CopyRepository{Backups: []string{b.ID}}, nil); codeOf(err) != contract.CodeRefused {
		t.Errorf("what was deleted there: %v", err)
	}
	done, err = Copy(t.Context(), f.Depot, g.Depot, contract.CopyRepository{}, nil)
	if err != nil || len(done.Copied) != 2 || done.Copied[0].ID == b.ID || done.Copied[1].ID == b.ID {
		t.Errorf("all but what was deleted there: %+v, %v", done, err)
	}
	if _, err := Copy(t.Context(), f.Depot, f.Depot, contract.CopyRepository{}, nil); codeOf(err) != contract.CodeUsage {
		t.Errorf("to itself: %v", err)
	}
}

// A backup by a dirty bitmap reads what that says, and is based on the backup that it counts from and on no other.
func TestABackupByDirtyBitmap(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	f.content = f.content[:2<<20]
	first := f.backUp(t, contract.BackupAuto)
	second := f.backUp(t, contract.BackupAuto)
	image := f.file + ".qcow2"
	imagetest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", f.file, image)
	imagetest.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", image, "b")
	imagetest.QemuIO(t, image, "qcow2", "write -P 5 512k 4k")
	copy(f.content[512<<10:], bytes.Repeat([]byte{5}, 4096))
	dir := t.TempDir()
	imagetest.Run(t, "qemu-nbd", "--fork", "--pid-file", filepath.Join(dir, "pid"), "--socket", filepath.Join(dir, "s"), "--persistent", "-f", "qcow2", "--read-only", "-B", "b", image)
	defer func() {
		pid, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		imagetest.Run(t, "kill", strings.TrimSpace(string(pid)))
	}()
	source := contract.ForeignSource{Source: "nbd+unix:///?socket=" + filepath.Join(dir, "s"), As: "disk", Bitmap: "b", Since: second.ID}
	for _, wrong := range []contract.ForeignSource{{Source: source.Source, As: "disk", Bitmap: "b"}, {Source: source.Source, As: "disk", Since: second.ID}, {Source: source.Source, As: "another", Bitmap: "b", Since: second.ID}} {
		if _, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Foreign: &wrong}, nil); codeOf(err) != contract.CodeUsage {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	source.Since = "0123456789abcdef"
	if _, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Foreign: &source}, nil); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("since a backup that is not there: %v", err)
	}
	source.Since = first.ID[:8]
	b, _, err := f.BackupForeign(t.Context(), contract.CreateBackup{Foreign: &source}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b.Type != contract.BackupIncremental || b.BaseID != first.ID || b.ChangedBytes != 4096 || b.ReadBytes > 64<<10+64*4096 || !strings.Contains(b.Reason, "bitmap") {
		t.Fatalf("%+v", b)
	}
	out := filepath.Join(dir, "out")
	if _, err := f.RestoreFile(t.Context(), contract.RestoreBackup{Backup: b.ID, ToFile: out}, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, out, f.content)
}

func TestDiffComparesContent(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	a := f.backUp(t, contract.BackupAuto)
	clear(f.content[8192:12288])
	copy(f.content[1<<20:], noise(8, 4096))
	f.content = append(f.content, make([]byte, 1<<20)...)
	f.content[len(f.content)-1] = 1
	b := f.backUp(t, contract.BackupAuto)
	for _, c := range []struct {
		older, newer string
		want         []contract.Extent
	}{
		{a.ID, b.ID, []contract.Extent{{Offset: 8192, Length: 4096}, {Offset: 1 << 20, Length: 4096}, {Offset: 3 << 20, Length: 512}}},
		{b.ID, a.ID, []contract.Extent{{Offset: 8192, Length: 4096}, {Offset: 1 << 20, Length: 4096}}},
		{a.ID, a.ID, nil},
	} {
		var got []contract.Extent
		err := f.Diff(t.Context(), c.older, c.newer, func(e contract.Extent) error {
			got = append(got, e)
			return nil
		})
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s to %s: %v, %v; want %v", c.older, c.newer, got, err, c.want)
		}
	}
}

// The disk of a restore is a block.Device like any other.
func TestDiskIsADevice(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	clear(f.content[64<<10 : 1<<20])
	f.write(t)
	r := contract.RestoreBackup{Backup: f.backUp(t, contract.BackupAuto).ID}
	target, err := memdisk.New(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	done, err := f.RestoreTo(t.Context(), r, target, "memory", true, nil)
	if err != nil || done.Target != "memory" {
		t.Fatal(done, err)
	}
	listed, err := f.repo.Backup(t.Context(), r.Backup)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPart(filepath.Join(t.TempDir(), "out"), listed.Backup, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if _, err := f.RestoreTo(t.Context(), r, p, "part", false, nil); err != nil {
		t.Fatal(err)
	}
	imagetest.CheckContent(t, p, f.content)
	imagetest.CheckExtents(t, p, f.content)
}

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "pool"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(data, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{data, filepath.Join(data, "pool/x/y"), "file://" + filepath.Join(dir, "link", "x")} {
		if _, err := Place(in, data); codeOf(err) != contract.CodeRefused {
			t.Errorf("%s: %v", in, err)
		}
	}
	if warning, err := Place(dir+"/data2", data); err != nil || warning == "" {
		t.Errorf("beside: %q, %v", warning, err)
	}
	for _, url := range []string{"s3://host/bucket", "/proc/nothing"} {
		if warning, err := Place(url, data); err != nil || warning != "" {
			t.Errorf("%s: %q, %v", url, warning, err)
		}
	}
	if warning, err := Place(dir+"/x", filepath.Join(dir, "nothere")); err != nil || warning != "" {
		t.Errorf("no data directory: %q, %v", warning, err)
	}
}

func TestUnavailable(t *testing.T) {
	a := contract.RepositoryAccess{URL: "/nothere"}
	_, err := Open(t.Context(), a, Options{})
	if r := Unavailable("x", a, err); r.State != contract.RepositoryAbsent || r.Reason == "" {
		t.Errorf("%+v", r)
	}
	a.PasswordFile = "/nothere"
	a.URL = t.TempDir()
	_, err = Open(t.Context(), a, Options{})
	if r := Unavailable("x", a, err); r.State != contract.RepositoryLocked || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%+v", r)
	}
	a.PasswordFile = ""
	_, err = Open(t.Context(), a, Options{})
	if r := Unavailable("x", a, err); r.State != contract.RepositoryFailed {
		t.Errorf("%+v", r)
	}
}
