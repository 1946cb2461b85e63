package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// mustInit makes a repository beside the data directory, and returns where.
func (d *Daemon) mustInit(t *testing.T, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(scratch(t), "repo")
	d.mustInitIn(t, name, dir)
	return dir
}

func (d *Daemon) mustInitIn(t *testing.T, name, dir string) {
	t.Helper()
	r := contract.InitRepository{Name: name, Access: contract.RepositoryAccess{URL: dir}, NoEncryption: true, ChunkSize: 64 << 10}
	if _, err := d.InitRepository(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// mustBackUp backs up, and describes what was made.
func (d *Daemon) mustBackUp(t *testing.T, r contract.CreateBackup) []contract.Backup {
	t.Helper()
	job, err := d.CreateBackup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	job = d.ended(t, job.ID)
	if job.State != contract.JobDone {
		t.Fatalf("backup of %v: %s: %s", r.Volumes, job.State, job.Reason)
	}
	return job.Result.Backups
}

func (d *Daemon) mustBackUpOne(t *testing.T, volume, repo, kind string) contract.Backup {
	t.Helper()
	return d.mustBackUp(t, contract.CreateBackup{Volumes: []string{volume}, Repo: repo, Type: kind})[0]
}

// backedUp reads a backup, as who restores it would.
func (d *Daemon) backedUp(t *testing.T, id string) []byte {
	t.Helper()
	u, b, err := d.find(t.Context(), "", id, anyOf, d.repositories.use)
	if err != nil {
		t.Fatal(err)
	}
	defer u.done()
	device, err := u.Repo().OpenDevice(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	got := make([]byte, device.SizeBytes())
	if err := device.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	return got
}

// content reads an export.
func (d *Daemon) content(t *testing.T, export string) []byte {
	t.Helper()
	c, err := client.Dial(t.Context(), d.uri(export), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, c.SizeBytes())
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatalf("read %s: %v", export, err)
	}
	return got
}

// submit has an export do something, and hangs up.
func (d *Daemon) submit(t *testing.T, export string, op *block.Op) {
	t.Helper()
	c, err := client.Dial(t.Context(), d.uri(export), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Submit(t.Context(), []*block.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// put writes blocks of one byte value to an export, and hangs up.
func (d *Daemon) put(t *testing.T, export string, fill byte, blocks ...int64) {
	t.Helper()
	for _, b := range blocks {
		d.submit(t, export, &block.Op{Kind: block.OpWrite, Offset: b * block.Size, Length: block.Size, Data: bytes.Repeat([]byte{fill}, block.Size)})
	}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d bytes, want %d", what, len(got), len(want))
	}
	for off := 0; off < len(want); off += block.Size {
		end := min(off+block.Size, len(want))
		if !bytes.Equal(got[off:end], want[off:end]) {
			t.Fatalf("%s differs in block %d: it begins with %x, want %x", what, off/block.Size, got[off:off+8], want[off:off+8])
		}
	}
}

// bookmarked lists the bookmarks of a volume.
func (d *Daemon) bookmarked(t *testing.T, volume string) (names []string) {
	t.Helper()
	all, err := d.Bookmarks(volume)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return names
}

// wantBookmarks fails unless a volume has those of these backups in a repository, and no others.
func (d *Daemon) wantBookmarks(t *testing.T, volume, repo string, ids ...string) {
	t.Helper()
	k, err := d.repositories.named(repo)
	if err != nil {
		t.Fatal(err)
	}
	of := d.repositories.now(k).ID
	var want, got []string
	for _, id := range ids {
		want = append(want, bookmarkName(id, of))
	}
	for _, name := range d.bookmarked(t, volume) {
		if _, its, ok := bookmarkOf(name); ok && its == of {
			got = append(got, name)
		}
	}
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Fatalf("bookmarks of %s for %s: %v, want %v", volume, repo, got, want)
	}
}

func (d *Daemon) wantNoSnapshots(t *testing.T) {
	t.Helper()
	left, err := d.pool.Snapshots("")
	if err != nil || len(left) > 0 {
		t.Fatalf("snapshots are left: %v, %v", left, err)
	}
}

// wantType fails unless a backup is of a type, made from another one, and says why.
func wantType(t *testing.T, b contract.Backup, kind, base, reason string) {
	t.Helper()
	if b.Type != kind || b.BaseID != base || !strings.Contains(b.Reason, reason) {
		t.Fatalf("backup %s is %s of %q because %q, want %s of %q because %q", b.ID, b.Type, b.BaseID, b.Reason, kind, base, reason)
	}
}

// bothPlaces runs a test with a volume "web" of 1 MiB in each layout.
func bothPlaces(t *testing.T, f func(t *testing.T, d *Daemon)) {
	for _, layout := range []string{contract.LayoutRedirect, contract.LayoutInplace} {
		t.Run(layout, func(t *testing.T) {
			d := start(t, scratch(t))
			r := contract.CreateVolume{Name: "web", Size: 1 << 20}
			if layout == contract.LayoutInplace {
				r.Inplace = filepath.Join(scratch(t), "web.raw")
			}
			if _, err := d.CreateVolume(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			f(t, d)
		})
	}
}

// TestBackupTypes: each type reads and depends on what it should, and every backup is the whole volume.
func TestBackupTypes(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		d.mustInit(t, "home")
		d.put(t, "web", 1, 0, 1, 2, 100)
		want := map[string][]byte{}
		backUp := func(kind string) contract.Backup {
			b := d.mustBackUpOne(t, "web", "home", kind)
			want[b.ID] = d.content(t, "web")
			d.wantNoSnapshots(t)
			return b
		}
		full := backUp("")
		wantType(t, full, contract.BackupFull, "", "no earlier backup")
		if full.Repo != "home" || full.Consistency != "crash" || full.PointID == "" || full.FreezeMS <= 0 || len(full.Freeze) == 0 || full.Size != 1<<20 {
			t.Errorf("what a backup says: %+v", full)
		}
		d.put(t, "web", 2, 1, 50)
		first := backUp("")
		wantType(t, first, contract.BackupIncremental, full.ID, "changes since backup "+full.ID+" are known")
		if first.ChangedBytes != 2*block.Size || first.Mismatched != 0 {
			t.Errorf("%d bytes changed, %d blocks did not match", first.ChangedBytes, first.Mismatched)
		}
		d.wantBookmarks(t, "web", "home", full.ID, first.ID)
		d.put(t, "web", 3, 2)
		diff := backUp(contract.BackupDifferential)
		wantType(t, diff, contract.BackupDifferential, full.ID, "asked for")
		if diff.ChangedBytes != 3*block.Size {
			t.Errorf("%d bytes changed since the full", diff.ChangedBytes)
		}
		d.wantBookmarks(t, "web", "home", full.ID, diff.ID)
		none := backUp(contract.BackupIncremental)
		wantType(t, none, contract.BackupIncremental, diff.ID, "asked for")
		if none.ChangedBytes != 0 {
			t.Errorf("%d bytes changed since nothing was written", none.ChangedBytes)
		}
		d.put(t, "web", 4, 7)
		second := backUp(contract.BackupFull)
		wantType(t, second, contract.BackupFull, "", "asked for")
		d.wantBookmarks(t, "web", "home", second.ID)
		for id, content := range want {
			same(t, "backup "+id, d.backedUp(t, id), content)
		}
		if len(d.Status().Warnings) > 0 {
			t.Errorf("warnings: %v", d.Status().Warnings)
		}
	})
}

// TestBackupWithoutItsBookmark: a base counts only if the pool knows its point; else the backup is a full, and says why.
func TestBackupWithoutItsBookmark(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	d.mustBackUpOne(t, "web", "home", "")
	for _, name := range d.bookmarked(t, "web") {
		if err := d.DeleteBookmark(t.Context(), "web#"+name); err != nil {
			t.Fatal(err)
		}
	}
	wantType(t, d.mustBackUpOne(t, "web", "home", contract.BackupIncremental), contract.BackupFull, "", "the bookmark is gone")
}

// TestTwoRepositoriesInTurn: A, B, A. A backup to another repository takes nothing from the next one to the first.
func TestTwoRepositoriesInTurn(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "a")
	d.mustInit(t, "b")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0, 1, 2)
	inA := d.mustBackUpOne(t, "web", "a", "")
	d.put(t, "web", 2, 1)
	inB := d.mustBackUpOne(t, "web", "b", "")
	d.put(t, "web", 3, 2)
	againA := d.mustBackUpOne(t, "web", "a", "")
	wantType(t, againA, contract.BackupIncremental, inA.ID, "")
	if againA.ChangedBytes != 2*block.Size || againA.Mismatched != 0 {
		t.Errorf("%d bytes changed, %d blocks did not match", againA.ChangedBytes, againA.Mismatched)
	}
	same(t, "the last backup", d.backedUp(t, againA.ID), d.content(t, "web"))
	wantType(t, inB, contract.BackupFull, "", "no earlier backup")
	againB := d.mustBackUpOne(t, "web", "b", "")
	wantType(t, againB, contract.BackupIncremental, inB.ID, "")
	same(t, "the last backup to b", d.backedUp(t, againB.ID), d.content(t, "web"))
	d.wantBookmarks(t, "web", "a", inA.ID, againA.ID)
	d.wantBookmarks(t, "web", "b", inB.ID, againB.ID)
}

// TestRepositoryRolledBack: of a repository that was put back from a copy only what is in it counts.
func TestRepositoryRolledBack(t *testing.T) {
	d := start(t, scratch(t))
	dir := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0, 1, 2)
	full := d.mustBackUpOne(t, "web", "home", "")
	old := filepath.Join(scratch(t), "old")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	d.put(t, "web", 2, 1)
	gone := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, gone, contract.BackupIncremental, full.ID, "")
	d.put(t, "web", 3, 2)
	if err := errors.Join(os.RemoveAll(dir), os.Rename(old, dir)); err != nil {
		t.Fatal(err)
	}
	b := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	if b.ChangedBytes != 2*block.Size {
		t.Errorf("%d bytes changed since the backup that is there", b.ChangedBytes)
	}
	same(t, "the backup after it", d.backedUp(t, b.ID), d.content(t, "web"))
	d.wantBookmarks(t, "web", "home", full.ID, b.ID)
}

// TestCopiedBackupIsABase: a backup that was copied to another repository is of the same point, which the pool knows.
func TestCopiedBackupIsABase(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "a")
	d.mustInit(t, "b")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0, 1, 2)
	full := d.mustBackUpOne(t, "web", "a", "")
	job, err := d.CopyRepository(t.Context(), "a", contract.CopyRepository{To: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobDone || len(job.Result.RepoCopy.Copied) != 1 {
		t.Fatalf("copy: %+v", job)
	}
	d.put(t, "web", 2, 1)
	b := d.mustBackUpOne(t, "web", "b", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
	if found, err := d.Backups(t.Context(), "b", "web"); err != nil || len(found) != 2 {
		t.Fatalf("in b: %v, %v", found, err)
	}
	both := contract.DeleteBackups{Backups: []string{full.ID[:8]}}
	wantCode(t, d.DeleteBackups(t.Context(), both), contract.CodeUsage)
	if found, err := d.Backups(t.Context(), "", ""); err != nil || len(found) != 3 {
		t.Fatalf("nobody said which to delete: %v, %v", found, err)
	}
	both.Repo = "a"
	if err := d.DeleteBackups(t.Context(), both); err != nil {
		t.Fatal(err)
	}
	if left, err := d.Backup(t.Context(), "", full.ID); err != nil || left.Repo != "b" {
		t.Fatalf("the copy: %+v, %v", left, err)
	}
}

// TestBackupFollowsRename: what a volume is called decides nothing.
func TestBackupFollowsRename(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "old")
	d.put(t, "old", 1, 0)
	full := d.mustBackUpOne(t, "old", "home", "")
	if _, err := d.ChangeVolume(t.Context(), "old", contract.ChangeVolume{Name: "new"}); err != nil {
		t.Fatal(err)
	}
	d.mustCreate(t, "old") // another one
	d.put(t, "new", 2, 1)
	b := d.mustBackUpOne(t, "new", "home", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	wantType(t, d.mustBackUpOne(t, "old", "home", ""), contract.BackupFull, "", "no earlier backup")
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "new"))
}

// TestBackupOfSnapshots: of a snapshot that is there nothing is frozen, and nothing is deleted; an older one may come after a newer one.
func TestBackupOfSnapshots(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		d.mustInit(t, "home")
		d.put(t, "web", 1, 0, 1)
		d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "s"})
		d.put(t, "web", 2, 1, 2)
		now := d.mustBackUpOne(t, "web", "home", "")
		then := d.mustBackUpOne(t, "web@s", "home", "")
		wantType(t, then, contract.BackupIncremental, now.ID, "")
		same(t, "the snapshot's backup", d.backedUp(t, then.ID), d.content(t, "web@s"))
		s, err := d.Snapshot(t.Context(), "web@s")
		if err != nil || s.ID != then.PointID || !then.CreatedAt.Equal(s.CreatedAt.Time) {
			t.Fatalf("%+v is not of %+v, %v", then, s, err)
		}
		d.put(t, "web", 3, 3)
		last := d.mustBackUpOne(t, "web", "home", "")
		same(t, "the last backup", d.backedUp(t, last.ID), d.content(t, "web"))
		_, err = d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web@s", "web"}, Repo: "home"})
		wantCode(t, err, contract.CodeUsage)
		_, err = d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web@none"}, Repo: "home"})
		wantCode(t, err, contract.CodeNotFound)
	})
}

// TestResizedVolume: a backup is of the size that the volume has then.
func TestResizedVolume(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0, 130, 255)
	d.mustBackUpOne(t, "web", "home", "")
	for _, size := range []int64{520<<10 + 512, 2 << 20} {
		if _, err := d.ChangeVolume(t.Context(), "web", contract.ChangeVolume{Size: &size, Force: true}); err != nil {
			t.Fatal(err)
		}
		b := d.mustBackUpOne(t, "web", "home", "")
		if b.Type != contract.BackupIncremental || b.Size != size {
			t.Fatalf("backup of %d bytes: %+v", size, b)
		}
		same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
	}
}

// orderly writes stamps 1, 2, 3, ... each to a block of the next volume in turn, each after the one before was acknowledged.
type orderly struct {
	volumes []string
	blocks  int64
}

// at tells where a stamp goes.
func (o orderly) at(n uint64) (volume int, lba int64) {
	v := uint64(len(o.volumes))
	return int(n % v), int64(n / v * 7919 % uint64(o.blocks))
}

// run writes until ctx ends, and returns the last stamp that was acknowledged.
func (o orderly) run(ctx context.Context, d *Daemon, first uint64) (uint64, error) {
	var clients []*client.Client
	for _, name := range o.volumes {
		c, err := client.Dial(ctx, d.uri(name), client.Options{})
		if err != nil {
			return 0, err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	data := make([]byte, block.Size)
	for n := first; ; n++ {
		v, lba := o.at(n)
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], n)
		}
		op := &block.Op{Kind: block.OpWrite, Offset: lba * block.Size, Length: block.Size, Data: data}
		if clients[v].Submit(context.Background(), []*block.Op{op}); op.Err != nil {
			return n, op.Err
		}
		if ctx.Err() != nil {
			return n, nil
		}
	}
}

// instant fails unless the disks hold what they did between two writes, and returns the last stamp then.
func (o orderly) instant(t *testing.T, disks [][]byte) (last uint64) {
	t.Helper()
	for _, disk := range disks {
		for off := 0; off < len(disk); off += block.Size {
			last = max(last, binary.LittleEndian.Uint64(disk[off:]))
		}
	}
	want := make([][]byte, len(disks))
	for i := range want {
		want[i] = make([]byte, len(disks[i]))
	}
	for n := uint64(1); n <= last; n++ {
		v, lba := o.at(n)
		b := want[v][lba*block.Size:][:block.Size]
		for i := 0; i < len(b); i += 8 {
			binary.LittleEndian.PutUint64(b[i:], n)
		}
	}
	for i := range disks {
		same(t, o.volumes[i]+" at stamp", disks[i], want[i])
	}
	return last
}

// TestBackupsUnderLoad: of each backup of a volume, or of a group, in use, all of it is what was there at one instant, the same for all volumes.
func TestBackupsUnderLoad(t *testing.T) {
	for _, volumes := range [][]string{{"web"}, {"web", "db", "log"}} {
		for _, layout := range []string{contract.LayoutRedirect, contract.LayoutInplace} {
			t.Run(strings.Join(volumes, "-")+" "+layout, func(t *testing.T) {
				d := start(t, scratch(t))
				d.mustInit(t, "home")
				for i, name := range volumes {
					r := contract.CreateVolume{Name: name, Size: 1 << 20}
					if layout == contract.LayoutInplace && i%2 == 0 {
						r.Inplace = filepath.Join(scratch(t), name+".raw")
					}
					if _, err := d.CreateVolume(t.Context(), r); err != nil {
						t.Fatal(err)
					}
				}
				o := orderly{volumes, 256}
				ctx, stop := context.WithCancel(t.Context())
				var writing sync.WaitGroup
				defer writing.Wait()
				defer stop()
				writing.Go(func() {
					if _, err := o.run(ctx, d, 1); err != nil {
						t.Error(err)
					}
				})
				last := uint64(0)
				for i, kind := range []string{"", "", contract.BackupDifferential, "", contract.BackupFull, "", ""} {
					made := d.mustBackUp(t, contract.CreateBackup{Volumes: volumes, Repo: "home", Type: kind})
					disks := make([][]byte, len(made))
					for at, b := range made {
						if b.Volume != volumes[at] || len(b.Group) != len(volumes)-1 {
							t.Fatalf("backup %d is of %s, in a group of %v", at, b.Volume, b.Group)
						}
						if full := b.Type == contract.BackupFull; full != (i == 0 || kind == contract.BackupFull) || b.Mismatched > 0 {
							t.Fatalf("backup %d: %s, %d blocks did not match", i, b.Type, b.Mismatched)
						}
						disks[at] = d.backedUp(t, b.ID)
					}
					now := o.instant(t, disks)
					if now < last {
						t.Fatalf("stamp %d is older than %d", now, last)
					}
					last = now
				}
				d.wantNoSnapshots(t)
			})
		}
	}
}

// TestGroupsInSets: in dedup scope set a group that has no base in one common set becomes fulls, all of it.
func TestGroupsInSets(t *testing.T) {
	d := start(t, scratch(t))
	access := contract.RepositoryAccess{URL: filepath.Join(scratch(t), "repo")}
	if _, err := d.InitRepository(t.Context(), contract.InitRepository{Name: "home", Access: access, NoEncryption: true, Dedup: contract.DedupSet}); err != nil {
		t.Fatal(err)
	}
	both := contract.CreateBackup{Volumes: []string{"web", "db"}, Repo: "home"}
	for _, name := range both.Volumes {
		d.mustCreate(t, name)
		d.put(t, name, 1, 0, 1)
	}
	types := func(want string, made []contract.Backup) {
		t.Helper()
		for i, b := range made {
			if b.Type != want {
				t.Fatalf("%s is %s (%s), want %s", b.Volume, b.Type, b.Reason, want)
			}
			same(t, b.Volume, d.backedUp(t, b.ID), d.content(t, both.Volumes[i]))
		}
	}
	types(contract.BackupFull, d.mustBackUp(t, both))
	d.put(t, "web", 2, 1)
	types(contract.BackupIncremental, []contract.Backup{d.mustBackUpOne(t, "web", "home", "")})
	d.put(t, "db", 2, 1)
	types(contract.BackupIncremental, d.mustBackUp(t, both))
	types(contract.BackupFull, []contract.Backup{d.mustBackUpOne(t, "web", "home", contract.BackupFull)})
	d.put(t, "db", 3, 2)
	types(contract.BackupFull, d.mustBackUp(t, both))
	d.put(t, "db", 4, 3)
	types(contract.BackupIncremental, d.mustBackUp(t, both))
}

// TestLeftoverBookmark: one of a backup that never came to be counts for nothing, and goes with the next backup.
func TestLeftoverBookmark(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	full := d.mustBackUpOne(t, "web", "home", "")
	d.put(t, "web", 2, 1)
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "s"})
	never := bookmarkName("0123456789abcdef", d.repositories.now(k).ID)
	if _, err := d.CreateBookmark(t.Context(), contract.CreateBookmark{Snapshot: "web@s", Name: never}); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteSnapshots(t.Context(), []string{"web@s"}); err != nil {
		t.Fatal(err)
	}
	d.put(t, "web", 3, 2)
	b := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
	d.wantBookmarks(t, "web", "home", full.ID, b.ID)
}

// TestPoolRolledBack: a pool that was put back from a copy remembers what it did then, and what it backed up since is the base of nothing.
func TestPoolRolledBack(t *testing.T) {
	dir := scratch(t)
	data, old := filepath.Join(dir, "data"), filepath.Join(dir, "old")
	begin := func() *Daemon {
		d, err := Start(t.Context(), Config{DataDir: data})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	stop := func(d *Daemon) {
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	d := begin()
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0, 1)
	full := d.mustBackUpOne(t, "web", "home", "")
	stop(d)
	if err := os.CopyFS(old, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	d = begin()
	d.put(t, "web", 2, 1, 5)
	later := d.mustBackUpOne(t, "web", "home", "")
	content := d.content(t, "web")
	stop(d)
	if err := errors.Join(os.RemoveAll(data), os.Rename(old, data)); err != nil {
		t.Fatal(err)
	}
	d = begin()
	defer stop(d)
	d.put(t, "web", 3, 2)
	b := d.mustBackUpOne(t, "web", "home", "")
	wantType(t, b, contract.BackupIncremental, full.ID, "")
	if b.Mismatched > 0 {
		t.Error("something was not tracked")
	}
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web"))
	same(t, "what was backed up before", d.backedUp(t, later.ID), content)
}
